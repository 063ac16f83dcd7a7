"""Starting quickly: no garbage is looked for while a run is put together.

Importing torch makes about a million objects that stay. Python's collector looks through them
again and again while they grow, which is a quarter of the time that such an import takes.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """No automatic garbage collection, until `resume_collector` or the end of the block."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def resume_collector() -> None:
    """Collect again from here on; what exists now (modules, the run's parts) is left out."""
    gc.freeze()
    gc.enable()

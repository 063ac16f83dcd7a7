"""The worker processes of a DataLoader: they end when the run ends them, or when it is no more.

Schedulers, `timeout` and a terminal that is closed send a signal to all processes of a job. It is
meant for the run, which goes on to its next safe point and needs its workers until then.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch.utils.data import DataLoader

from hookexp.signals import disregard_stop_signals, held_back


def iterate(loader: DataLoader[Any]) -> Iterator[Any]:
    """Begin a pass over a loader, which is itself left as it was."""
    if loader.num_workers == 0:
        return iter(loader)
    own = loader.worker_init_fn
    loader.worker_init_fn = partial(_begin, own)
    try:
        with held_back():
            iterator = iter(loader)
    finally:
        loader.worker_init_fn = own
    for worker in getattr(iterator, "_workers", ()):
        # They do not heed SIGTERM, with which torch and, at its exit, Python end one that hangs.
        worker._popen.terminate = worker._popen.kill
    return iterator


def end(iterator: Iterator[Any] | None) -> None:
    """End the workers of a pass now: at the end of the process torch takes it for an accident."""
    if iterator is not None and hasattr(iterator, "_shutdown_workers"):
        iterator._shutdown_workers()


@contextmanager
def unheeded() -> Iterator[None]:
    """While it is entered, a worker's end is no error: torch raises one out of a signal handler."""
    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGCHLD) if hasattr(signal, "SIGCHLD") else None
    if not is_main or handler is None:
        yield
        return
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGCHLD, handler)


def _begin(own: Callable[[int], None] | None, worker_id: int) -> None:
    # torch's own watch takes the parent it finds once it begins, which may be the orphans' by then.
    threading.Thread(target=_leave_with_parent, daemon=True).start()
    disregard_stop_signals()
    if own is not None:
        own(worker_id)


def _leave_with_parent() -> None:
    """A worker ends at once when the run's process is no more, however that ended."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)

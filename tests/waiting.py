"""Counts what would make the host wait for the device: shared by the tests and the benchmark."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from hookexp.hook import Hook, Priority

WAITING = (
    *("item", "tolist", "cpu", "numpy", "nonzero"),
    *("__float__", "__int__", "__bool__", "__index__", "__repr__", "__format__"),
)

Waits = Counter[tuple[str, str]]
"""By method and file of the package that called it."""


@contextmanager
def counted_waits() -> Iterator[Waits]:
    """How often code of the package asks for a tensor's value; on a CPU, where nothing waits, too.

    A dispatch mode would miss `tolist` and `numpy`, and count what optimizers do by themselves.
    """
    counts: Waits = Counter()

    def watched(name: str, method: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            caller = sys._getframe(1).f_code.co_filename
            if "/hookexp/" in caller:
                counts[name, caller.rpartition("/")[2]] += 1
            return method(*args, **kwargs)

        return call

    own = vars(Tensor)
    before = {name: own.get(name) for name in WAITING}
    for name in WAITING:
        setattr(Tensor, name, watched(name, getattr(Tensor, name)))
    try:
        yield counts
    finally:
        for name, method in before.items():
            if method is None:
                delattr(Tensor, name)
            else:
                setattr(Tensor, name, method)


class PerIteration(Hook):
    """The waits of each iteration: from before its batch was fetched to after all hooks."""

    priority = Priority.LOWEST

    def __init__(self, waits: Waits) -> None:
        self.waits = waits
        self.seen: list[Waits] = []

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.seen.append(Counter(self.waits))
        self.waits.clear()

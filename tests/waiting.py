"""Counts what would make the host wait for the device: shared by the tests and the benchmark."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
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

    def before_train(self, runner: Any) -> None:
        self.waits.clear()  # What is read once, when a run begins.

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        self.seen.append(Counter(self.waits))
        self.waits.clear()


class Forbidden(Hook):
    """Lets torch raise an error where the host waits for a GPU, but in iterations that log.

    Args:
        interval: iterations between two log points.
        is_allowed: waiting is no error at all.
        first: iterations that may wait, as they build caches of kernels and streams.
    """

    priority = Priority.LOWEST

    def __init__(self, interval: int, is_allowed: bool = False, first: int = 20) -> None:
        self.interval = interval
        self.is_allowed = is_allowed
        self.first = first

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        next_is_log_point = (batch_idx + 2) % self.interval == 0
        is_last = batch_idx + 1 == runner.max_iters  # Hooks read what is left when it has ended.
        free = self.is_allowed or next_is_log_point or is_last or batch_idx < self.first
        torch.cuda.set_sync_debug_mode("default" if free else "error")

    def on_exception(self, runner: Any, error: BaseException) -> None:
        torch.cuda.set_sync_debug_mode("default")

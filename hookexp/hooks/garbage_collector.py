"""Collects Python's garbage at fixed iterations.

python -m hookexp hooks=+garbage_collector
"""

from __future__ import annotations

import gc
import os
from typing import Any

from hookexp.hook import Batch, Hook, Mode, Priority
from hookexp.numeric import require_whole
from hookexp.runner import Runner

_suspended = False


class GarbageCollectorHook(Hook):
    """Python looks for cycles whenever enough objects were made, in the middle of any iteration.

    With many ranks each pauses at another moment and all wait for each of them; on one GPU the
    launches run dry. So the automatic collection is off during a run, and what is due is done at
    the same iterations everywhere, and wholly before each epoch and each evaluation. Worker
    processes of the data loader keep the automatic one. Afterwards it is as it was.

    Args:
        interval: batches between two collections, in training and in evaluations.
        generation: what those look through: 0 the youngest objects, 1, or 2 for all.
        freeze: leave all that exists when training begins (model, data, modules) out of every
            collection, which makes them much shorter.

    Raises:
        ValueError: for an interval below 1 or a generation that does not exist.
    """

    priority = Priority.LOWEST

    def __init__(self, interval: int = 1000, generation: int = 1, freeze: bool = True) -> None:
        require_whole("interval", interval, of="iterations")
        if generation not in (0, 1, 2):
            raise ValueError(f"generation={generation}: use 0, 1 or 2")
        self.interval = interval
        self.generation = generation
        self.freeze = freeze
        self._was_enabled = False
        self._has_frozen = False

    def before_run(self, runner: Runner) -> None:
        global _suspended
        self._was_enabled = gc.isenabled()
        _suspended = self._was_enabled
        gc.disable()

    def before_train(self, runner: Runner) -> None:
        if self.freeze and gc.get_freeze_count() == 0:
            gc.collect()
            gc.freeze()
            self._has_frozen = True

    def _before_epoch(self, runner: Runner, mode: Mode = "train") -> None:
        gc.collect()

    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
        mode: Mode = "train",
    ) -> None:
        done = runner.iter + 1 if mode == "train" else batch_idx + 1
        if done % self.interval == 0:
            gc.collect(self.generation)

    def after_run(self, runner: Runner) -> None:
        global _suspended
        _suspended = False
        if self._has_frozen:
            gc.unfreeze()
            self._has_frozen = False
        if self._was_enabled:
            gc.enable()


def _resume_in_child() -> None:
    if _suspended:
        gc.enable()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_resume_in_child)

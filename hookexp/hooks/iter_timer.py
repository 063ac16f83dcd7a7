"""How long an iteration takes, how much of it is waiting for data, and how long the run will be.

python -m hookexp hooks=-iter_timer
"""

from __future__ import annotations

from time import perf_counter
from typing import Any

import torch

from hookexp.hook import Batch, Hook, Mode, Priority
from hookexp.runner import Runner

_NAMES: dict[Mode, tuple[str, str]] = {
    mode: (f"{mode}/data_time", f"{mode}/time") for mode in ("train", "val", "test")
}
"""Of the two scalars in the message hub, by mode."""


class IterTimerHook(Hook):
    """`data_time` is the fetch of the batch; `time` is from the fetch on, data_time included.

    Both are in seconds. The loop stamps the fetch, so that a validation, a checkpoint or a log
    line is not charged to the batch after it. `eta` (seconds) and `memory` (peak MiB on the GPU)
    are computed when somebody logs them.
    """

    priority = Priority.NORMAL

    def __init__(self) -> None:
        self._train_began = 0.0
        self._first_iter = 0

    def before_train(self, runner: Runner) -> None:
        hub = runner.message_hub
        self._train_began = perf_counter()
        self._first_iter = runner.iter
        if runner.max_iters is not None:
            hub.set_gauge("train/eta", lambda: self._eta(runner))
        if runner.device.type == "cuda":
            hub.set_gauge("train/memory", lambda: _peak_memory(runner.device))

    def _before_epoch(self, runner: Runner, mode: Mode = "train") -> None:
        if mode != "train":
            for name in _NAMES[mode]:
                runner.message_hub.clear(name)

    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
        mode: Mode = "train",
    ) -> None:
        clock, update = runner.clock, runner.message_hub.update_scalar
        data_time, time = _NAMES[mode]
        update(data_time, clock.ended - clock.began)
        update(time, perf_counter() - clock.began)

    def _eta(self, runner: Runner) -> float:
        assert runner.max_iters is not None
        done = runner.iter + 1 - self._first_iter
        seconds_per_iter = (perf_counter() - self._train_began) / done
        return seconds_per_iter * (runner.max_iters - runner.iter - 1)


def _peak_memory(device: torch.device) -> float:
    return torch.cuda.max_memory_allocated(device) / 2**20

"""`EmptyCacheHook`: give cached device memory back, at points one can choose."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch

from hookexp.hook import Batch, Hook, Mode, Priority

if TYPE_CHECKING:
    from hookexp.runner import Runner


class EmptyCacheHook(Hook):
    """Empties the device's memory cache in training, validation and test.

    PyTorch keeps freed memory for itself. Where training and validation need blocks of different
    sizes, or a second process shares the device, giving it back can be what makes them fit. It
    makes the host wait for the device, so `after_iter` slows a run down.

    The device is the run's own (CUDA, MPS, XPU); the CPU has no cache, which is said once.

        python -m hookexp hooks=+empty_cache hooks.empty_cache.before_epoch=true

    Args:
        before_epoch: before each epoch of training, and each evaluation.
        after_epoch: after them.
        after_iter: after each iteration of both.
    """

    priority = Priority.NORMAL

    def __init__(
        self, before_epoch: bool = False, after_epoch: bool = True, after_iter: bool = False
    ) -> None:
        self._before_each_epoch = before_epoch
        self._after_each_epoch = after_epoch
        self._after_each_iter = after_iter
        self._empty_cache: Callable[[], None] = _nothing_to_empty

    def before_run(self, runner: Runner) -> None:
        module = torch.get_device_module(runner.device)
        if hasattr(module, "empty_cache"):
            self._empty_cache = module.empty_cache
        else:
            runner.logger.info(
                "hook 'empty_cache': %s keeps no cache, so there is nothing to empty", runner.device
            )

    def _before_epoch(self, runner: Runner, mode: Mode = "train") -> None:
        if self._before_each_epoch:
            self._empty_cache()

    def _after_epoch(self, runner: Runner, mode: Mode = "train") -> None:
        if self._after_each_epoch:
            self._empty_cache()

    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
        mode: Mode = "train",
    ) -> None:
        if self._after_each_iter:
            self._empty_cache()


def _nothing_to_empty() -> None:
    pass

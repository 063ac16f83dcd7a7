"""Looks for a learning rate: a short run in which it grows from far too low to far too high.

python -m hookexp hooks=+lr_finder-param_scheduler-checkpoint
"""

from __future__ import annotations

import copy
import csv
import math
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from hookexp import dist
from hookexp.errors import ConfigError
from hookexp.hook import Batch, Hook, Priority
from hookexp.numeric import require_whole
from hookexp.optim.lr_curve import draw, smooth, smooth_both_ways, steepest
from hookexp.optim.states import config_path
from hookexp.runner import Runner
from hookexp.task import loss_of

CSV_FILE = "lr_finder.csv"
PICTURE_FILE = "lr_finder.png"


class LrFinderHook(Hook):
    """The loss over a growing learning rate says where training begins, is fastest, and breaks.

    The learning rate of iteration i is `start_lr * (end_lr / start_lr) ** (i / (num_iters - 1))`;
    groups keep their ratio to the first one. The search ends after `num_iters`, or when an
    exponential average of the loss exceeds `divergence` times its lowest; no validation follows.
    Then weights, buffers, optimizer and gradients are as they were before.

    Of the curve, smoothed in both directions, the learning rate is suggested at which it falls
    fastest per decade (Smith 2017, arXiv:1506.01186, reads the same curve by eye). It is in
    `lr_finder.csv` (lr, loss, smoothed up to the divergence) and `lr_finder.png` in the run's
    folder. Without `-checkpoint` in the command the search saves checkpoints as any other run.

    Args:
        start_lr: learning rate of the first iteration.
        end_lr: learning rate of the last iteration.
        num_iters: iterations of the search; the run has to have that many.
        smoothing: share of a new value in the average, above 0 and up to 1.
        divergence: how many times its lowest value the smoothed loss may reach.
        interval: iterations between two looks for divergence; each makes the host wait.

    Raises:
        ValueError: for a value that cannot be.
        ConfigError: if the run is shorter than the search, or the first group's learning rate 0.
    """

    priority = Priority.HIGHEST
    conflicts = ("param_scheduler", "check_invalid_loss")  # A search is meant to diverge.

    def __init__(
        self,
        start_lr: float = 1e-6,
        end_lr: float = 10.0,
        num_iters: int = 100,
        smoothing: float = 0.2,
        divergence: float = 4.0,
        interval: int = 10,
    ) -> None:
        if not 0 < start_lr < end_lr < math.inf:
            raise ValueError(
                f"start_lr={start_lr}, end_lr={end_lr}: use numbers above 0, start_lr the smaller"
            )
        require_whole("num_iters", num_iters, 10)
        if not 0 < smoothing <= 1:
            raise ValueError(f"smoothing={smoothing}: use a number above 0 and up to 1")
        if not divergence > 1:
            raise ValueError(f"divergence={divergence}: use a number above 1")
        require_whole("interval", interval, of="iterations")
        self.start_lr = start_lr
        self.end_lr = end_lr
        self.num_iters = num_iters
        self.smoothing = smoothing
        self.divergence = divergence
        self.interval = interval
        self.suggestion: float | None = None
        self._lrs: list[float] = []
        self._losses: list[float] = []
        self._unread: list[Tensor] = []
        self._before: tuple[dict[str, Any], dict[str, Any]] | None = None
        self._ratios: list[float] = []
        self._has_ended = False

    def before_train(self, runner: Runner) -> None:
        if runner.max_iters is not None and runner.max_iters < self.num_iters:
            longer = f"trainer.max_iters={self.num_iters}"
            if runner.by_epoch:
                epochs = math.ceil(self.num_iters * runner.max_epochs / runner.max_iters)
                longer = f"trainer.max_epochs={epochs}"
            raise ConfigError(
                f"hooks.lr_finder.num_iters={self.num_iters}: the run has only {runner.max_iters} "
                f"iterations; set {longer}, or a smaller number here"
            )
        first, *_ = lrs = runner.optim_wrapper.get_lr()["lr"]
        if first == 0:
            raise ConfigError(
                "optimizer.lr=0: hooks.lr_finder keeps the ratio of the groups' learning rates to "
                "it; set a number above 0, such as optimizer.lr=0.1"
            )
        self._ratios = [lr / first for lr in lrs]
        self._before = (
            copy.deepcopy(runner.model.state_dict()),
            copy.deepcopy(runner.optim_wrapper.state_dict()),
        )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        lr = self._lr_at(len(self._lrs))
        self._lrs.append(lr)
        for group, ratio in zip(runner.optim_wrapper.param_groups, self._ratios, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(lr * ratio)
            else:
                group["lr"] = lr * ratio

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        self._unread.append(loss_of(outputs).detach().squeeze().clone())
        is_last = len(self._lrs) == self.num_iters
        if is_last or len(self._lrs) % self.interval == 0:
            self._read()
            if is_last or self._end_of_curve() < len(self._losses):
                self._has_ended = True
                runner.state.stop("lr_finder: the search has ended", urgent=True)

    def after_train(self, runner: Runner) -> None:
        self._read()
        self._restore(runner)
        if runner.rank != 0 or not self._losses:
            return
        if not self._has_ended:
            runner.logger.warning(
                "lr_finder: the search was stopped after %d of %d iterations, so there is nothing "
                "to suggest",
                len(self._losses),
                self.num_iters,
            )
            return
        end = self._end_of_curve()
        lrs, losses = self._lrs[:end], self._losses[:end]
        smoothed = smooth_both_ways(losses, self.smoothing)
        self.suggestion = steepest(lrs, smoothed)
        self._write_csv(runner.work_dir / CSV_FILE, smoothed)
        path = runner.work_dir / PICTURE_FILE
        draw(lrs, losses, smoothed, self.suggestion).save(path)
        runner.message_hub.post_artifact("lr_finder", path)
        if self.suggestion is None:
            runner.logger.warning(
                "lr_finder: the loss never falls, so there is nothing to suggest; see %s", path
            )
        else:
            suggested = self._by_key(runner, self.suggestion)
            runner.message_hub.update_info("suggestions", suggested)
            runner.logger.info(
                "lr_finder: the loss falls fastest at %s; see %s",
                " ".join(f"{key}={lr:g}" for key, lr in suggested.items()),
                path,
            )

    def _by_key(self, runner: Runner, lr: float) -> dict[str, float]:
        """A learning rate of the first group, as the keys of the config that lead to it."""
        keys: dict[str, float] = {}
        ratios = iter(self._ratios)
        for name, optimizer in runner.optim_wrapper.optimizers.items():
            own = [next(ratios) for _ in optimizer.param_groups]
            keys[f"{config_path(name)}.lr"] = float(f"{lr * own[0]:.2g}")
        return keys

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        self._restore(runner)

    def _lr_at(self, index: int) -> float:
        return float(
            self.start_lr * (self.end_lr / self.start_lr) ** (index / (self.num_iters - 1))
        )

    def _read(self) -> None:
        if not self._unread:
            return
        losses = torch.stack(self._unread).float()
        if dist.world_size() > 1:
            # All ranks have to see the same curve, to stop at the same iteration.
            torch.distributed.all_reduce(losses)
            losses /= dist.world_size()
        self._losses += losses.tolist()
        self._unread = []

    def _end_of_curve(self) -> int:
        """How many of the losses come before the smoothed one diverges, of those that were read."""
        lowest = math.inf
        for index, loss in enumerate(smooth(self._losses, self.smoothing)):
            lowest = min(lowest, loss)
            if not math.isfinite(loss) or loss > self.divergence * lowest > 0.0:
                return index
        return len(self._losses)

    def _restore(self, runner: Runner) -> None:
        if self._before is None:
            return
        weights, optimizers = self._before
        self._before = None
        runner.model.load_state_dict(weights)
        for name, optimizer in runner.optim_wrapper.optimizers.items():
            optimizer.load_state_dict(optimizers["optimizers"][name])
        runner.optim_wrapper.load_state_dict(optimizers)

    def _write_csv(self, path: Path, smoothed: Sequence[float]) -> None:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.writer(file)
            writer.writerow(["lr", "loss", "smoothed"])
            rows = zip_longest(self._lrs, self._losses, smoothed, fillvalue="")
            writer.writerows(rows)

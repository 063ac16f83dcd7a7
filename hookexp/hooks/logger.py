"""Collects the numbers of a run at fixed intervals and hands them to the sinks.

python -m hookexp hooks.logger.interval=50
python -m hookexp sinks=+wandb-tensorboard      # where they go
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hookexp.data.loader import num_batches
from hookexp.hook import Batch, Hook, Mode, Priority
from hookexp.message_hub import Artifact
from hookexp.numeric import require_whole
from hookexp.runner import Runner
from hookexp.sink import LogPoint

_LATEST = ("lr",)
_TIMINGS = ("data_time", "time")


class LoggerHook(Hook):
    """The only one who calls sinks; at a log point all scalars cross from the device in one copy.

    Args:
        interval: iterations between two rows; values are means over that many iterations, the
            learning rate is the last one.
        ignore_last: leave out the row of an epoch's last, shorter interval (unless the epoch is
            shorter than one interval).
        interval_exp_name: iterations between two lines with the experiment's name; -1 for never.
        out_dir: copy the text files of the run's folder to `out_dir/<name of the folder>` at its
            end; null for nowhere.
        out_suffix: endings of the files that are copied.
        keep_local: keep the files that were copied; if not, they go when the run is over. One that
            was stopped goes on in them, and one that is extended gets them back from `out_dir`.
        log_metric_by_epoch: in runs by epochs, the x axis of validation metrics is the epoch,
            else the iteration. `scalars.jsonl` and W&B always have the iteration as the step, and
            the epoch beside it.
    """

    priority = Priority.BELOW_NORMAL

    def __init__(
        self,
        interval: int = 10,
        ignore_last: bool = True,
        interval_exp_name: int = 1000,
        out_dir: str | None = None,
        out_suffix: Sequence[str] = (".json", ".jsonl", ".log", ".py", "yaml"),
        keep_local: bool = True,
        log_metric_by_epoch: bool = True,
    ) -> None:
        require_whole("interval", interval, of="iterations")
        self.interval = interval
        self.ignore_last = ignore_last
        self.interval_exp_name = interval_exp_name
        self.out_dir = out_dir
        self.out_suffix = tuple(out_suffix)
        self.keep_local = keep_local
        self.log_metric_by_epoch = log_metric_by_epoch
        self._num_batches: int | None = None
        self._num_evaluated = 0
        self._has_warned = False

    def before_run(self, runner: Runner) -> None:
        runner.message_hub.set_window(self.interval)
        if self.out_dir is not None and runner.rank == 0 and runner.cfg.get("resume") is not None:
            self._bring_back(Path(self.out_dir) / runner.work_dir.name, runner.work_dir)
        runner.sinks.open(runner)
        runner.sinks.log_config(runner.cfg)

    def before_train(self, runner: Runner) -> None:
        self._num_batches = runner.num_batches_per_epoch if runner.by_epoch else runner.max_iters

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        if self.every_n_train_iters(runner, self.interval_exp_name):
            runner.logger.info("Exp name: %s", runner.experiment_name)
        is_due = self.every_n_inner_iters(batch_idx, self.interval)
        is_last = batch_idx + 1 == self._num_batches
        if is_due or (is_last and self._keeps_last(batch_idx + 1)):
            self._log_training(runner, runner.iter + 1, batch_idx + 1, self._num_batches)

    def after_train_epoch(self, runner: Runner) -> None:
        """Which batch is the last one of data without a length is known by now."""
        batch = runner.state.batch_in_epoch
        if self._num_batches is None and batch % self.interval and self._keeps_last(batch):
            self._log_training(runner, runner.iter, batch, batch)

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        self._log_progress(runner, "val", batch_idx)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        self._log_progress(runner, "test", batch_idx)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._log_result(runner, "val", metrics or {})

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._log_result(runner, "test", metrics or {})

    def after_val(self, runner: Runner) -> None:
        self._forward_outbox(runner)

    def after_test(self, runner: Runner) -> None:
        self._forward_outbox(runner)

    def after_run(self, runner: Runner) -> None:
        self._forward_outbox(runner)
        runner.sinks.close()
        if self.out_dir is not None and runner.rank == 0:
            keeps = self.keep_local or (runner.mode == "train" and not runner.is_over)
            self._copy_logs(Path(self.out_dir) / runner.work_dir.name, runner.work_dir, keeps)

    def _keeps_last(self, num_batches: int) -> bool:
        """Whether the shorter interval at the end of an epoch gets a row."""
        return not self.ignore_last or num_batches < self.interval

    def _log_training(
        self, runner: Runner, iteration: int, batch: int, num_batches: int | None
    ) -> None:
        point = LogPoint("train", runner.epoch + 1, iteration, batch, num_batches)
        scalars = runner.message_hub.read("train/", self.interval, latest=_LATEST)
        runner.sinks.log_scalars(scalars, point.iter, point)
        self._forward_outbox(runner)
        if not math.isfinite(scalars.get("loss", 0.0)) and not self._has_warned:
            self._has_warned = True
            runner.logger.warning(
                "the loss is %s in the mean of the iterations up to %d; this is said once, "
                "hooks=+check_invalid_loss says where it begins and keeps it from the weights",
                *(scalars["loss"], iteration),
            )

    def _log_progress(self, runner: Runner, mode: Mode, batch_idx: int) -> None:
        """A row of timings in the middle of a long evaluation."""
        self._num_evaluated = batch_idx + 1
        num = _num_batches(runner, mode)
        if batch_idx + 1 != num and self.every_n_inner_iters(batch_idx, self.interval):
            self._log_evaluation(runner, mode, batch_idx + 1, num, {}, is_result=False)

    def _log_result(self, runner: Runner, mode: Mode, metrics: dict[str, float]) -> None:
        """The data need not know its length beforehand."""
        num, self._num_evaluated = self._num_evaluated, 0
        self._log_evaluation(runner, mode, num, num, metrics, is_result=True)

    def _log_evaluation(
        self,
        runner: Runner,
        mode: Mode,
        batch: int,
        num: int | None,
        metrics: dict[str, float],
        is_result: bool,
    ) -> None:
        # In a run by iterations the validations belong to its one, unfinished epoch.
        epoch = runner.epoch if runner.by_epoch else runner.epoch + 1
        point = LogPoint(mode, epoch, runner.iter, batch, num, is_result)
        times = runner.message_hub.read(f"{mode}/", runner.message_hub.window)
        timings = {name: value for name, value in times.items() if name in _TIMINGS}
        by_epoch = is_result and self.log_metric_by_epoch and runner.by_epoch
        step = point.epoch if by_epoch else point.iter
        # A metric may be called like a timing; metrics come first, in order and in rank.
        runner.sinks.log_scalars({**metrics, **timings, **metrics}, step, point)

    def _forward_outbox(self, runner: Runner) -> None:
        outbox, runner.message_hub.outbox = runner.message_hub.outbox, []
        for post in outbox:
            if isinstance(post, Artifact):
                runner.sinks.log_artifact(post.name, post.path, runner.iter)
            else:
                runner.sinks.log_image(post.name, post.pixels, runner.iter)

    def _bring_back(self, source: Path, folder: Path) -> None:
        for path in source.glob("*"):
            if path.is_file() and not (folder / path.name).exists():
                shutil.copy2(path, folder / path.name)

    def _copy_logs(self, target: Path, folder: Path, keeps: bool) -> None:
        target.mkdir(parents=True, exist_ok=True)
        for path in sorted(folder.iterdir()):
            if path.is_file() and path.name.endswith(self.out_suffix):
                shutil.copy2(path, target / path.name)
                if not keeps:
                    path.unlink()


def _num_batches(runner: Runner, mode: Mode) -> int | None:
    loader = runner.val_dataloader if mode == "val" else runner.test_dataloader
    return None if loader is None else num_batches(loader)

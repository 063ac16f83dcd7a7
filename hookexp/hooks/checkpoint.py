"""When a checkpoint is saved, under which name, and which ones are kept.

python -m hookexp hooks.checkpoint.interval=5 hooks.checkpoint.max_keep_ckpts=2
python -m hookexp hooks/checkpoint=best         # also the best by the first metric
python -m hookexp hooks=-checkpoint             # none at all
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hookexp.checkpoint.best import BestScores
from hookexp.checkpoint.publish import publish
from hookexp.checkpoint.store import POINTER, CheckpointStore, best_stem
from hookexp.errors import ConfigError
from hookexp.hook import Batch, Hook, Priority
from hookexp.numeric import is_number, is_whole
from hookexp.runner import Runner
from hookexp.state import SaveRequest
from hookexp.stop_together import Together

_MOST_PASSES = 100
"""Over the data in a run by iterations, after each of which a checkpoint is due."""


class CheckpointHook(Hook):
    """Asks for checkpoints; the loop writes them at its next safe point.

    Args:
        interval: epochs (or iterations) between two checkpoints; -1 for never.
        by_epoch: whether `interval` and `save_begin` count epochs, else iterations. In a run by
            iterations passes over the data count; of more than 100 several count as one, since
            little data would give a checkpoint every few moments.
        save_optimizer, save_param_scheduler: without them a run cannot be resumed.
        out_dir: put them into `out_dir/<name of the run's folder>` instead of the run's folder.
        max_keep_ckpts: how many are kept (the best ones aside); -1 for all.
        save_last: also save at the end, when the interval does not fall there, and when the
            run is stopped early.
        save_best: a metric, a list of metrics, or `auto` for the first one of the task.
        rule: `greater` or `less` (a list for several metrics); null infers it from the name.
        greater_keys, less_keys: the names, or parts of names, a rule is inferred from.
        filename_tmpl: with one `{}` for the number; null is `epoch_{}.pth` or `iter_{}.pth`.
        published_keys: at the end also publish a file with these keys only (see `publish`).
        save_begin: the first epoch (or iteration) that may be saved.
        every_n_minutes: also save by the clock.
        async_save: go on training while a checkpoint is written; training waits for the copy in
            host memory alone.
        on_write_error: `stop`, or `go_on` without the checkpoint: a warning says why, and the ones
            before it stay.
        save_on_exception: after an error save `exception_iter_N.pth`. Where no iteration was
            broken off, as in a validation or while a batch was fetched, `resume=PATH` continues
            from it exactly; else it holds the weights alone, to look into, and inside of an
            optimizer's step nothing is saved. `resume=auto` does not take it.
    """

    priority = Priority.VERY_LOW

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        out_dir: str | None = None,
        max_keep_ckpts: int = -1,
        save_last: bool = True,
        save_best: str | Sequence[str] | None = None,
        rule: str | Sequence[str] | None = None,
        greater_keys: str | Sequence[str] | None = None,
        less_keys: str | Sequence[str] | None = None,
        filename_tmpl: str | None = None,
        published_keys: str | Sequence[str] | None = None,
        save_begin: int = 0,
        every_n_minutes: float | None = None,
        async_save: bool = True,
        on_write_error: str = "stop",
        save_on_exception: bool = False,
    ) -> None:
        _require(
            interval == -1 or is_whole(interval, 1), f"interval={interval}", "-1 or 1 and more"
        )
        _require(
            max_keep_ckpts == -1 or is_whole(max_keep_ckpts, 1),
            f"max_keep_ckpts={max_keep_ckpts}",
            "-1 (all) or 1 and more",
        )
        _require(is_whole(save_begin, 0), f"save_begin={save_begin}", "0 and more")
        _require(
            every_n_minutes is None or (is_number(every_n_minutes) and every_n_minutes > 0),
            f"every_n_minutes={every_n_minutes}",
            "null or a number above 0",
        )
        _require(
            on_write_error in ("stop", "go_on"), f"on_write_error={on_write_error}", "stop or go_on"
        )
        self.interval = interval
        self.by_epoch = by_epoch
        self.save_optimizer = save_optimizer
        self.save_param_scheduler = save_param_scheduler
        self.out_dir = out_dir
        self.max_keep_ckpts = max_keep_ckpts
        self.save_last = save_last
        self.best = BestScores(*map(_as_list, (save_best, rule, greater_keys, less_keys)))
        self.save_best = self.best.metrics
        self.greater_keys, self.less_keys = self.best.greater_keys, self.best.less_keys
        self.filename_tmpl = _checked_template(filename_tmpl)
        self.published_keys = _as_list(published_keys)
        self.save_begin = save_begin
        self.every_n_minutes = every_n_minutes
        self.async_save = async_save
        self.on_write_error = on_write_error
        self.save_on_exception = save_on_exception
        self._iters: tuple[int, int] | None = None if by_epoch else (interval, save_begin)
        """Interval and begin in iterations; None where epochs count."""
        self._kept: list[str] = []
        self._began_at_iter = 0
        self._saved_at_iter = -1
        self._next_save_by_clock = 0.0
        self._ranks = Together()
        self._failed = False

    def get_triggered_stages(self) -> list[str]:
        stages = super().get_triggered_stages()
        if self._iters is None and self.every_n_minutes is None:
            stages.remove("after_train_iter")
        return stages

    def check_metrics(self, metric_names: Sequence[str]) -> None:
        self.best.rules(metric_names)

    def before_run(self, runner: Runner) -> None:
        runner.writer.goes_on_after_failure = self.on_write_error == "go_on"
        if self.out_dir is None:
            return
        folder = Path(self.out_dir) / runner.work_dir.name
        runner.writer.store = CheckpointStore(folder)

    def before_train(self, runner: Runner) -> None:
        fresh = self.out_dir is not None and not runner.resumed
        if fresh and (runner.writer.store.folder / POINTER).exists():
            raise ConfigError(
                f"hooks.checkpoint.out_dir: {runner.writer.store.folder} holds the checkpoints of "
                "another run; choose another out_dir, or continue that run with resume=auto"
            )
        if self.by_epoch and not runner.by_epoch:
            self._count_passes(runner)
        self._began_at_iter = runner.iter
        if self.every_n_minutes is not None:
            self._next_save_by_clock = time.monotonic() + 60 * self.every_n_minutes

    def _count_passes(self, runner: Runner) -> None:
        """A run by iterations is one epoch; what counts there are passes over the data."""
        batches = runner.num_batches_per_epoch
        if batches is not None:
            assert runner.max_iters is not None, "a run by iterations has a budget"
            at_once = max(math.ceil(runner.max_iters / (_MOST_PASSES * batches)), 1)
            self._iters = self.interval * at_once * batches, self.save_begin * batches
            runner.hooks.ask_again(self)
        elif self.interval > 0 and self.every_n_minutes is None:
            runner.logger.warning(
                "hooks.checkpoint.by_epoch=true: data.train has no length, so this run by "
                "iterations is one epoch and saves nothing before its end or a stop; set "
                "hooks.checkpoint.by_epoch=false hooks.checkpoint.interval=1000"
            )

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        if self._iters is not None:
            due = self.every_n_train_iters(runner, *self._iters)
            if due or (self.save_last and self.is_last_train_iter(runner)):
                self._save(runner, self._name(runner.iter + 1), runner.iter + 1)
        if self.every_n_minutes is not None and self._is_due_by_clock(runner):
            self._next_save_by_clock = time.monotonic() + 60 * self.every_n_minutes
            self._save(runner, f"iter_{runner.iter + 1}.pth", runner.iter + 1)

    def after_train_epoch(self, runner: Runner) -> None:
        if self._iters is None:
            due = self.every_n_epochs(runner, self.interval, self.save_begin)
            if due or (self.save_last and self.is_last_train_epoch(runner)):
                self._save(runner, self._name(runner.epoch + 1), runner.iter)

    def after_train(self, runner: Runner) -> None:
        """A run that was stopped early keeps its last state, as does one of unknown length."""
        has_news = runner.state.stop_reason or runner.iter > self._began_at_iter
        if has_news and self.save_last and self._saved_at_iter != runner.iter:
            at_end_of_epoch = runner.by_epoch and runner.state.batch_in_epoch == 0
            if self._iters is not None:
                filename = self._name(runner.iter)
            elif at_end_of_epoch:
                filename = self._name(runner.epoch)
            else:
                filename = f"iter_{runner.iter}.pth"
            self._save(runner, filename, runner.iter)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if runner.mode == "train":
            for metric, score in self.best.beaten_by(metrics or {}):
                self._save_best(runner, metric, score)

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        self._failed = True
        if self.save_on_exception and runner.mode == "train":
            self._save_broken(runner)

    def after_run(self, runner: Runner) -> None:
        if self.published_keys and runner.mode == "train" and not self._failed:
            self._publish(runner)

    def state_dict(self) -> dict[str, Any]:
        return {"kept": list(self._kept), "best": self.best.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._kept = list(state["kept"])
        self.best.load_state_dict(state["best"])

    def _save(self, runner: Runner, filename: str, at_iter: int) -> None:
        self._saved_at_iter = at_iter
        runner.message_hub.update_info("last_ckpt", filename, keep=True)
        if filename in self._kept:
            self._kept.remove(filename)
        self._kept.append(filename)
        obsolete: list[str] = []
        if self.max_keep_ckpts > 0:
            obsolete = self._kept[: -self.max_keep_ckpts]
            self._kept = self._kept[-self.max_keep_ckpts :]
        self._request(runner, filename, tuple(obsolete), points_last=True)

    def _name(self, number: int) -> str:
        default = "epoch_{}.pth" if self._iters is None else "iter_{}.pth"
        return (self.filename_tmpl or default).format(number)

    def _is_due_by_clock(self, runner: Runner) -> bool:
        """All ranks have to save at the same iteration, and their clocks differ."""
        is_due = time.monotonic() >= self._next_save_by_clock
        if runner.world_size == 1:
            return is_due
        return any(due for (due,) in self._ranks.tell(is_due))

    def _save_broken(self, runner: Runner) -> None:
        """Other ranks may have no error, and would not join in a whole checkpoint."""
        state, filename = runner.state, f"exception_iter_{runner.iter}.pth"
        if state.is_stepping:
            runner.logger.warning("nothing is saved: the error came inside the optimizer's step")
            return
        is_whole = state.is_sound and runner.world_size == 1
        runner.logger.info(
            "saving %s%s",
            filename,
            "" if is_whole else ", with the weights alone: the error broke off an iteration",
        )
        state.request_save(SaveRequest(filename, points_last=False, weights_alone=not is_whole))

    def _save_best(self, runner: Runner, metric: str, score: float) -> None:
        unit, number = ("epoch", runner.epoch) if runner.by_epoch else ("iter", runner.iter)
        filename = f"{best_stem(metric)}_{unit}_{number}.pth"
        obsolete = self.best.note(metric, score, filename)
        suffix = f"_{metric}" if len(self.best) > 1 else ""
        runner.message_hub.update_info(f"best_score{suffix}", score, keep=True)
        runner.message_hub.update_info(f"best_ckpt{suffix}", filename, keep=True)
        runner.logger.info("best %s so far: %.4f, saved as %s", metric, score, filename)
        self._request(runner, filename, obsolete, points_last=False)

    def _request(
        self, runner: Runner, filename: str, obsolete: tuple[str, ...], points_last: bool
    ) -> None:
        runner.state.request_save(
            SaveRequest(
                filename,
                with_optimizer=self.save_optimizer,
                with_param_schedulers=self.save_param_scheduler,
                obsolete=obsolete,
                points_last=points_last,
                in_background=self.async_save,
            )
        )

    def _publish(self, runner: Runner) -> None:
        if runner.rank != 0:
            return
        names = self._kept[-1:] if self.save_last else []
        for metric, file in self.best.files().items():
            if file is None:
                runner.logger.warning("no best checkpoint by %s to publish: it never came", metric)
            else:
                names.append(file)
        for name in names:
            path = runner.writer.store.folder / name
            if Path(name).name != name or not path.is_file():
                # Of the run that this one continues from its checkpoint, in another folder.
                runner.logger.warning("%s is none of this run's files, and is not published", name)
                continue
            try:
                path = publish(path, self.published_keys)
            except OSError as error:
                raise ConfigError(
                    f"hooks.checkpoint.published_keys: {name} could not be published "
                    f"({(error.strerror or str(error)).lower()}); all that was trained is saved: "
                    "mend that, and resume=auto publishes it"
                ) from error
            runner.logger.info("published %s", path.name)


def _require(holds: bool, given: str, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{given}: use {allowed}")


def _as_list(value: str | Sequence[str] | None) -> list[str]:
    if value is None:
        return []
    return [value] if isinstance(value, str) else list(value)


def _checked_template(template: str | None) -> str | None:
    if template is None:
        return None
    try:
        name = template.format(1)
        counts = name != template
    except (IndexError, KeyError, ValueError):
        name, counts = "", False
    if not counts or Path(name).name != name or "\\" in name or name.startswith("."):
        raise ValueError(
            f"filename_tmpl={template}: use a plain file name with one {{}} for the number, "
            "such as epoch_{}.pth, and no folder in it"
        )
    return template

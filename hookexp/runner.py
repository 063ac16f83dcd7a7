"""`Runner`: the parts of a run under the names that hooks rely on.

It moves data through the model and calls mount points; it knows no hook by name. `loops.py` shows
the order of everything, `build.py` puts the parts together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch.optim import Optimizer

from hookexp import dist, seed
from hookexp.checkpoint import own_generators
from hookexp.checkpoint.checkpointer import Checkpointer
from hookexp.data import workers
from hookexp.data.loader import WorkerLoader, num_batches
from hookexp.data.stream import BatchStream
from hookexp.errors import ConfigError
from hookexp.failures import as_a_failure, in_plain_words
from hookexp.hook import Mode
from hookexp.host_time import HostTime
from hookexp.loops import EvalLoop, TrainLoop
from hookexp.message_hub import MessageHub
from hookexp.signals import StopSignals
from hookexp.state import FetchClock, Phase, RunState, SaveRequest
from hookexp.summary import SUMMARY_FILE, Summary, ending
from hookexp.user_errors import mistake_of_the_task, note_what_it_was_given

if TYPE_CHECKING:
    from hookexp.data.loader import Loader
    from hookexp.hook import Batch
    from hookexp.parts import Parts

    _Step = Callable[[torch.nn.Module, Any], dict[str, Any]]


class Runner:
    """One run. Its attributes are finished parts: reading one never builds anything."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        self.settings = parts.settings
        self.hooks = parts.hooks
        self.model = parts.model
        self.task = parts.task
        self.device = parts.device
        self.optim_wrapper = parts.optim_wrapper
        self.optim_wrapper.states.name_parameters(dist.unwrap(parts.model))
        self.param_schedulers = parts.param_schedulers
        self.sinks = self.visualizer = parts.sinks
        self.objective = parts.objective
        self.work_dir = self.log_dir = parts.work_dir
        self.experiment_name = parts.experiment_name
        self.seed = parts.seed
        self.cfg = parts.cfg
        self.prefetch = parts.prefetch
        self._autocast, self._place = parts.autocast, parts.place
        self._train_step = parts.train_step
        self.timestamp = time.strftime("%Y%m%d_%H%M%S")
        self.logger = logging.getLogger("hookexp")
        self.state = RunState(is_alone=dist.world_size() == 1)
        self.clock = FetchClock()
        self.message_hub = MessageHub()
        self.host_time = HostTime()
        self.hooks.time_with(self.host_time.wrap)
        self.mode: Mode = "train"
        self.resumed = False
        self.outputs: dict[str, Any] = {}
        self.train_loop = (
            None if parts.train_loader is None else TrainLoop(self, parts.train_loader)
        )
        self.val_loop = (
            None if parts.val_loader is None else EvalLoop(self, parts.val_loader, "val")
        )
        self.test_loop = (
            None if parts.test_loader is None else EvalLoop(self, parts.test_loader, "test")
        )
        self.checkpointer = Checkpointer(self, parts)
        self.writer = self.checkpointer.writer
        self._metrics: dict[str, float] = {}

    # -- where the run stands -------------------------------------------------------------------

    @property
    def epoch(self) -> int:
        """Epochs finished."""
        return self.state.epoch

    @property
    def iter(self) -> int:
        """Training iterations finished, over all epochs."""
        return self.state.iter

    @property
    def by_epoch(self) -> bool:
        """Whether the budget of the run counts epochs, not iterations."""
        return self.settings.by_epoch

    @property
    def max_epochs(self) -> int:
        """Epochs of the run; one by iterations is a single endless epoch."""
        return self.settings.budget if self.by_epoch else 1

    @property
    def max_iters(self) -> int | None:
        """Iterations of the run, None if the data cannot tell its length."""
        if not self.by_epoch:
            return self.settings.budget
        batches = self.num_batches_per_epoch
        return None if batches is None else batches * self.settings.budget

    @property
    def max_optim_steps(self) -> int | None:
        """Optimizer steps of the run, None if the data cannot tell its length."""
        max_iters = self.max_iters
        return None if max_iters is None else self.optim_wrapper.windows.count(max_iters)

    @property
    def num_batches_per_epoch(self) -> int | None:
        """Training batches of an epoch, None if the data cannot tell."""
        return None if self.train_loop is None else num_batches(self.train_loop.dataloader)

    @property
    def rank(self) -> int:
        return dist.rank()

    @property
    def world_size(self) -> int:
        return dist.world_size()

    # -- parts by their published names ---------------------------------------------------------

    @property
    def train_dataloader(self) -> Loader | None:
        return None if self.train_loop is None else self.train_loop.dataloader

    @property
    def val_dataloader(self) -> Loader | None:
        return None if self.val_loop is None else self.val_loop.dataloader

    @property
    def test_dataloader(self) -> Loader | None:
        return None if self.test_loop is None else self.test_loop.dataloader

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of a run that has one, else the first."""
        return self.optim_wrapper.optimizer

    # -- the run --------------------------------------------------------------------------------

    def run(self, mode: Mode) -> Summary:
        """Train, validate or test; returns how it ended and writes summary.json."""
        self.mode = mode
        with StopSignals(self.state):
            try:
                return self._run(mode)
            except SystemExit as error:
                raise as_a_failure(error, self) from error

    def _run(self, mode: Mode) -> Summary:
        started = time.monotonic()
        loop = {"train": self.train_loop, "val": self.val_loop, "test": self.test_loop}[mode]
        if loop is None:
            raise ConfigError(
                f"mode={mode} needs data.{mode}, which is null; give it a data set, or choose the "
                "mode of one there is"
            )
        try:
            self._begin(mode)
            with self.host_time.whole_loop():
                loop.run()
            self.writer.wait()
            # A launcher ends all ranks once one has left with a signal's code.
            dist.wait_for_all()
        except BaseException as error:
            with workers.unheeded():
                self._tell_hooks(error)
                note_what_it_was_given(error)
                plain = in_plain_words(error, self) or mistake_of_the_task(error, self)
            if plain is not None:
                raise plain from error
            raise
        finally:
            with workers.unheeded():
                self._close_loaders()
        summary = self._summarize(time.monotonic() - started)
        with ending(self.work_dir) if self.rank == 0 and mode == "train" else nullcontext():
            self._end(summary)
        if self.rank == 0:
            self._tell_user(summary)
        # A signal that came since has left what was going on to end.
        summary.exit_code = self.state.exit_code
        return summary

    def _begin(self, mode: Mode) -> None:
        """All that comes before the loop, in its order."""
        self.task.setup(self)
        self.checkpointer.note_parts()  # Setting up may have moved some.
        self.hooks.before_run(self)
        if mode == "train":
            self.optim_wrapper.states.note_added_groups()
            self.optim_wrapper.states.refuse_those_that_cannot_be_loaded()
            self.checkpointer.note_weights()
            self._bind_param_schedulers()
        self.checkpointer.load()
        if mode == "train" and self.rank == 0:
            # It would tell of another end, should this one be killed.
            (self.work_dir / SUMMARY_FILE).unlink(missing_ok=True)

    def forward_train(self, data_batch: Batch) -> dict[str, Any]:
        """The forward pass of training: device, autocast and the task's train_step."""
        with self._autocast:
            return self._train_step(self.model, self._place(data_batch))

    def wrap_train_step(self, wrap: Callable[[_Step], _Step]) -> Callable[[], None]:
        """Have every train_step go through `wrap(train_step)`; returns the undo."""
        before, self._train_step = self._train_step, wrap(self._train_step)
        return lambda: setattr(self, "_train_step", before)

    @torch.no_grad()
    def forward_eval(self, data_batch: Batch, mode: Mode) -> dict[str, Any]:
        """The forward pass of an evaluation; updates the task's metrics."""
        step = self.task.val_step if mode == "val" else self.task.test_step
        with self._autocast:
            return step(self.model, self._place(data_batch))

    def optimizer_step(self, name: str | None = None) -> None:
        """Step an optimizer (the one there is, or by name) between its two mount points."""
        wrapper = self.optim_wrapper
        wrapper.unscale(name)
        self.hooks.before_optim_step(self)
        grad_norm = wrapper.clip(name)
        if grad_norm is not None:
            self.message_hub.update_scalar("train/grad_norm", grad_norm)
        self.state.is_stepping = True
        has_stepped = wrapper.step(name)
        self.state.is_stepping = False
        if has_stepped:
            if wrapper.is_leading(name):
                self.state.optim_steps += 1
            self.hooks.after_optim_step(self)

    def rng_state(self) -> dict[str, Any]:
        """The states of all generators, those of the model, the task and the hooks included."""
        own = own_generators.states_of(self._of_the_model(), self.task, self.hooks)
        return {**seed.rng_state(), "own": own}

    def set_rng_state(self, state: Mapping[str, Any]) -> None:
        """Put back what `rng_state` returned."""
        own_generators.set_states(self._of_the_model(), self.task, self.hooks, state.get("own", {}))
        seed.set_rng_state(dict(state))

    def _of_the_model(self) -> list[tuple[str, Any]]:
        """The model, and what it keeps in plain attributes."""
        beside = self.checkpointer.beside
        return [("model", dist.unwrap(self.model)), *beside.hidden, *beside.values.objects]

    def call_hook(self, point: str, **kwargs: Any) -> None:
        """Call a mount point by name; for points that hooks open for other hooks."""
        self.hooks.call(point, self, **kwargs)

    def register_hook(
        self, hook: Any, priority: int | str | None = None, name: str | None = None
    ) -> None:
        """Add a hook during a run; inside a mount point it first runs at the next call."""
        self.hooks.register(hook, name or type(hook).__name__, priority)
        self.hooks.check_method_names()
        self.hooks.check_contracts()

    def note_metrics(self, metrics: Mapping[str, float]) -> None:
        """Keep the metrics of an evaluation for the summary of the run."""
        self._metrics = dict(metrics)
        self.checkpointer.beside.values.end_evaluation()
        if self.objective is not None:
            self.objective.update(metrics, self.epoch, self.iter)

    # -- checkpoints ----------------------------------------------------------------------------

    def save_checkpoint(self, filename: str) -> None:
        """Ask for a checkpoint; it is written at the loop's next safe point."""
        self.state.request_save(SaveRequest(filename))

    def _bind_param_schedulers(self) -> None:
        """Tell the schedulers how long the run is, in epochs and in optimizer steps."""
        max_epochs = self.max_epochs if self.by_epoch else None
        self.param_schedulers.bind(self.optim_wrapper.optimizers, max_epochs, self.max_optim_steps)

    # -- the end --------------------------------------------------------------------------------

    def _end(self, summary: Summary) -> None:
        if self.rank == 0:
            try:
                summary.write(self.work_dir, self.mode)
            except OSError as error:
                self.logger.warning("the summary could not be written: %s", error)
        try:
            self.hooks.after_run(self)
        except BaseException as failure:
            self._try_all([partial(self.hooks.on_exception, self, error=failure)])
            raise

    def _close_loaders(self) -> None:
        """End their workers, also those of loaders that hooks have exchanged for others."""
        parts = self._parts
        loaders = [self.train_dataloader, self.val_dataloader, self.test_dataloader]
        for loader in (*loaders, parts.train_loader, parts.val_loader, parts.test_loader):
            if isinstance(loader, WorkerLoader | BatchStream):
                loader.close()

    def _tell_hooks(self, error: BaseException) -> None:
        """Let hooks react to an error and clean up; what they raise must not hide the error."""
        # What was asked for in the broken iteration would not be a state to continue from.
        self.state.save_requests.clear()
        calls: list[Callable[[], None]] = [
            lambda: self.hooks.on_exception(self, error=error),
            self.checkpointer.save_requested,
            self.writer.wait,
            lambda: self.hooks.after_run(self),
        ]
        self._try_all(calls)

    def _try_all(self, calls: list[Callable[[], None]]) -> None:
        for call in calls:
            try:
                call()
            except Exception:
                self.logger.exception("this failed too, while the run was ending with an error")

    def _tell_user(self, summary: Summary) -> None:
        parts = self._parts
        for line in summary.describe(
            self.work_dir, parts.words_of_an_evaluation, parts.words_of_a_training
        ):
            self.logger.info(line)
        for warning in summary.host_time.over(self.settings.hook_budget):
            self.logger.warning(warning)

    def _summarize(self, seconds: float) -> Summary:
        state, checkpoints = self.state, self.writer.store.folder
        reason = "" if self._has_spent_all() else state.stop_reason
        return Summary(
            status="stopped" if reason else "finished",
            reason=reason,
            objective=self.objective,
            metrics=self._metrics,
            epoch=self.epoch,
            iter=self.iter,
            seconds=seconds,
            exit_code=state.exit_code,
            suggestions=self.message_hub.get_info("suggestions", {}),
            host_time=self.host_time.shares(self.iter, self.hooks.that_train()),
            max_epochs=self.settings.max_epochs,
            max_iters=self.settings.max_iters,
            is_final=self.is_over,
            checkpoints_in="" if checkpoints == self.work_dir else str(checkpoints.absolute()),
        )

    @property
    def is_over(self) -> bool:
        """Whether a training has nothing left to do, as far as this budget goes."""
        was_ended = self.state.final_reason and self.state.phase is Phase.TRAIN
        return self._has_spent_all() or bool(was_ended)

    def _has_spent_all(self) -> bool:
        loop = self.train_loop if self.mode == "train" else None
        return loop is not None and loop.has_spent_budget and self.state.phase is Phase.TRAIN

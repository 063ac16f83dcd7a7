"""The loops of a run: every mount point, in order, on one page (`>` marks a mount point).

    > before_run                                  Runner.run, whatever the mode
    > after_load_checkpoint(checkpoint)           only when something is loaded
    > before_train                                                              TrainLoop.run
      while not done:
    >   before_train_epoch
        for batch_idx, data_batch in loader:
    >     before_train_iter(batch_idx, data_batch)                         TrainLoop.run_iter
          outputs = task.train_step(model, batch)        forward under autocast, dict with "loss"
    >     after_train_iter(batch_idx, data_batch, outputs)
            the optimizer hook, HIGH (30): backward; when a step is due: unscale
    >         before_optim_step                          Runner.optimizer_step
              clip, step, zero_grad
    >         after_optim_step                           ema (50), param schedulers (70)
            ... then timer (50), logger (60), checkpoint (90: asks for a save)
          iter += 1; save if asked; validate if due; leave if done
    >   after_train_epoch
        epoch += 1; save if asked; validate if due       a save: > before_save_checkpoint
    > after_train
      an evaluation:  > before_val > before_val_epoch                             EvalLoop.run
                      { > before_val_iter, task.val_step, > after_val_iter }
                      > after_val_epoch(metrics) > after_val                  (or test for val)
    > on_exception(error)                         only after an error
    > after_run                                   always

Inside `after_train_iter` and `after_train_epoch` the counters do not include the current
iteration or epoch yet. A run by iterations is one epoch over an endless sampler.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import closing
from time import perf_counter
from typing import TYPE_CHECKING, Any

from hookexp.checkpoint import snapshot
from hookexp.data.loader import num_batches
from hookexp.state import Phase
from hookexp.stop_together import AgreeTogether, StopTogether
from hookexp.user_errors import metrics_of, refuse_dry_data, refuse_idle_ranks

if TYPE_CHECKING:
    from hookexp.data.loader import Loader
    from hookexp.hook import Batch, Mode
    from hookexp.runner import Runner


class TrainLoop:
    """Training, by epochs or by iterations, with the validations in between."""

    def __init__(self, runner: Runner, dataloader: Loader) -> None:
        self.runner = runner
        self.dataloader = dataloader
        self._batches_per_epoch = num_batches(dataloader)
        self._ranks = AgreeTogether(runner.state)

    def run(self) -> None:
        """Train until the budget is spent, or a hook or a signal asks to stop."""
        inside_epoch = self._begin()
        with self._ranks.meeting():
            self._train(inside_epoch)

    def _begin(self) -> bool:
        """Ready all for the first iteration; returns whether that is inside an epoch."""
        runner, hooks, state = self.runner, self.runner.hooks, self.runner.state
        runner.model.train()
        if self.has_spent_budget:
            runner.logger.info("this run has ended already; a larger budget would continue it")
        runner.host_time.begin(state.iter, runner.max_iters)
        hooks.before_train(runner)
        runner.checkpointer.note_training()
        if inside_epoch := state.batch_in_epoch > 0:
            hooks.before_train_epoch(runner)
        runner.checkpointer.restore_hooks()
        snapshot.refuse_states_that_cannot_be_saved(runner)
        if runner.val_loop is not None and runner.settings.val_begin == 0 and state.iter == 0:
            state.phase = state.phase if runner.resumed else Phase.VALIDATE
        return inside_epoch

    def _train(self, inside_epoch: bool) -> None:
        runner, hooks, state = self.runner, self.runner.hooks, self.runner.state
        self._reach_safe_point()
        while not self.is_done:
            if not inside_epoch:
                state.is_sound = False
                hooks.before_train_epoch(runner)
            inside_epoch = False
            if not self._train_on_batches():
                break
            state.is_sound = False
            hooks.after_train_epoch(runner)
            state.epoch += 1
            if runner.by_epoch:
                state.batch_in_epoch = 0
                self._note_validation(state.epoch)
            self._reach_safe_point()
        state.is_sound = False
        hooks.after_train(runner)
        self._ranks.look(at_once=True)
        runner.checkpointer.save_requested()

    def _train_on_batches(self) -> bool:
        """Train on the rest of the epoch; False if a stop left it unfinished."""
        runner, state = self.runner, self.runner.state
        host_time, by_epoch, max_iters = runner.host_time, runner.by_epoch, runner.max_iters
        with closing(_fetch(runner, self.dataloader, state.batch_in_epoch)) as batches:
            for batch_idx, data_batch in batches:
                if state.iter == host_time.next_iter:
                    with host_time.iteration(runner.hooks, runner.clock):
                        self.run_iter(batch_idx, data_batch)
                else:
                    self.run_iter(batch_idx, data_batch)
                state.iter += 1
                state.batch_in_epoch += 1
                if not by_epoch:
                    self._note_validation(state.iter)
                self._reach_safe_point()
                if state.stop_reason or state.iter == max_iters:
                    break
            if state.iter == max_iters and by_epoch:
                next(batches, None)  # A stream's pass is over once it is asked for more.
        is_last = state.iter == max_iters
        if not (is_last or state.stop_reason):
            refuse_dry_data(state, runner.settings.max_iters)
        return is_last or not state.stop_reason

    def run_iter(self, batch_idx: int, data_batch: Batch) -> None:
        """One iteration: forward, then whatever the hooks do with its outputs."""
        runner, hooks = self.runner, self.runner.hooks
        runner.state.is_sound = False
        hooks.before_train_iter(runner, batch_idx=batch_idx, data_batch=data_batch)
        outputs = runner.outputs = runner.forward_train(data_batch)
        hooks.after_train_iter(runner, batch_idx=batch_idx, data_batch=data_batch, outputs=outputs)

    @property
    def is_done(self) -> bool:
        """Whether the budget is spent or a hook has asked to stop."""
        return bool(self.runner.state.stop_reason) or self.has_spent_budget

    @property
    def has_spent_budget(self) -> bool:
        """Whether all epochs, or all iterations, of the run are finished."""
        state, settings = self.runner.state, self.runner.settings
        return (state.epoch if settings.by_epoch else state.iter) >= settings.budget

    @property
    def stop_training(self) -> bool:
        """Whether a hook has asked to stop; set it to True to ask."""
        return self.runner.state.is_to_stop

    @stop_training.setter
    def stop_training(self, value: bool) -> None:
        if value:
            self.runner.state.stop("a hook set train_loop.stop_training")

    def _note_validation(self, finished: int) -> None:
        val_loop, settings = self.runner.val_loop, self.runner.settings
        if val_loop is not None and settings.validates_after(finished, self._batches_per_epoch):
            self.runner.state.phase = Phase.VALIDATE

    def _reach_safe_point(self) -> None:
        """All hooks have run and the counters agree: save what was asked for, then validate."""
        runner, state = self.runner, self.runner.state
        state.is_sound = True
        self._ranks.look()
        runner.writer.raise_failure()
        if state.save_requests:
            runner.checkpointer.save_requested()
        if state.phase is Phase.VALIDATE and not state.stop_is_urgent:
            assert runner.val_loop is not None
            if runner.val_loop.run() is not None:
                state.phase, state.is_sound = Phase.TRAIN, True
                self._ranks.look()
                runner.checkpointer.save_requested()


class EvalLoop:
    """One evaluation of the model, for validation or test."""

    def __init__(self, runner: Runner, dataloader: Loader, mode: Mode) -> None:
        self.runner = runner
        self.dataloader = dataloader
        self.mode = mode
        self.metrics: dict[str, float] = {}  # Of the last evaluation.
        self._ranks = StopTogether(runner.state)

    def run(self) -> dict[str, float] | None:
        """Evaluate on all batches; returns the task's metrics.

        An urgent stop gives the evaluation up: None, and the generators are those from before it.
        """
        runner, task, mode = self.runner, self.runner.task, self.mode
        modes = {module: module.training for module in runner.model.modules()}
        generators = runner.rng_state()
        runner.model.eval()
        try:
            self._call(f"before_{mode}")
            self._call(f"before_{mode}_epoch")
            runner.checkpointer.beside.values.begin_evaluation()
            refuse_idle_ranks(mode, self._ranks.begin(num_batches(self.dataloader)))
            with closing(_fetch(runner, self.dataloader, 0)) as batches:
                for batch_idx, data_batch in batches:
                    self._ranks.look()
                    if runner.state.stop_is_urgent:
                        runner.set_rng_state(generators)
                        return None
                    self.run_iter(batch_idx, data_batch)
            self.metrics = metrics_of(task)
            runner.note_metrics(self.metrics)
            runner.state.is_sound = False
            self._call(f"after_{mode}_epoch", metrics=self.metrics)
            self._call(f"after_{mode}")
        except BaseException:
            runner.set_rng_state(generators)
            raise
        finally:
            runner.model.train(modes[runner.model])
            for module, is_training in modes.items():
                module.training = is_training  # A part may have had another mode.
        return self.metrics

    def run_iter(self, batch_idx: int, data_batch: Batch) -> None:
        """One batch: forward between the two mount points of an evaluation's iteration."""
        runner, mode = self.runner, self.mode
        batch = {"batch_idx": batch_idx, "data_batch": data_batch}
        self._call(f"before_{mode}_iter", **batch)
        outputs = runner.outputs = runner.forward_eval(data_batch, mode)
        self._call(f"after_{mode}_iter", **batch, outputs=outputs)

    def _call(self, point: str, **kwargs: Any) -> None:
        getattr(self.runner.hooks, point)(self.runner, **kwargs)


def _fetch(runner: Runner, loader: Loader, start: int) -> Generator[tuple[int, Batch], None, None]:
    """The batches from number `start` on, with their numbers; stamps when each was fetched."""
    clock, batches = runner.clock, loader.iterate(start)
    if loader.may_be_read_ahead:
        batches = runner.prefetch(batches)
    clock.began = perf_counter()
    for numbered_batch in enumerate(batches, start):
        clock.ended = perf_counter()
        yield numbered_batch
        clock.began = perf_counter()

"""`ParamSchedulerHook`: moves learning rate, momentum and weight decay along their schedules."""

from __future__ import annotations

from typing import TYPE_CHECKING

from hookexp.hook import Hook, Priority

if TYPE_CHECKING:
    from hookexp.runner import Runner


class ParamSchedulerHook(Hook):
    """Writes the scheduled values into the optimizers' parameter groups. On by default.

    They change after an optimizer step, so the lr that is logged at an iteration is the lr that
    was used in it; and not per micro-batch, nor on a step that the gradient scaler skipped. Which
    schedules there are is the config group `param_scheduler`:

        python -m hookexp param_scheduler=warmup_cosine param_scheduler.warmup.end=200

    It has no state: a schedule is a function of the run's position, and what a plateau remembers
    is saved with the schedulers.
    """

    priority = Priority.LOW

    def before_train(self, runner: Runner) -> None:
        runner.param_schedulers.update(runner.state.epoch, runner.state.optim_steps)

    def after_optim_step(self, runner: Runner) -> None:
        runner.param_schedulers.update(runner.state.epoch, runner.state.optim_steps)

    def after_train_epoch(self, runner: Runner) -> None:
        # runner.state.epoch advances after this mount point
        runner.param_schedulers.update(runner.state.epoch + 1, runner.state.optim_steps)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if runner.mode == "train":
            runner.param_schedulers.update_with_metrics(metrics or {})

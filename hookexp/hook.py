"""The `Hook` base class: every mount point of a run, once, in the order a run reaches them.

A hook is a class with methods named after mount points. It needs nothing at construction but
plain values, and it meets the run through the `runner` argument of each method.

    class StopWatch(Hook):
        priority = Priority.LOW

        def before_train(self, runner):
            self.started = time.monotonic()

        def after_train(self, runner):
            runner.logger.info("trained for %.1f s", time.monotonic() - self.started)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

if TYPE_CHECKING:
    from collections.abc import Sized

    from hookexp.runner import Runner

Batch = Any
Mode = Literal["train", "val", "test"]
_Method = TypeVar("_Method", bound=Callable[..., Any])


class Priority(IntEnum):
    """Nine names for the order of hooks at a mount point; the smaller number is called first."""

    HIGHEST = 0
    VERY_HIGH = 10
    HIGH = 30
    ABOVE_NORMAL = 40
    NORMAL = 50
    BELOW_NORMAL = 60
    LOW = 70
    VERY_LOW = 90
    LOWEST = 100

    @staticmethod
    def parse(value: int | str) -> int:
        """The number of a priority given as a name (any case), or as a whole number 0 to 100.

        Raises:
            ValueError: for any other value; the message lists what is allowed.
        """
        if isinstance(value, str):
            name = value.upper()
            if name in Priority.__members__:
                return int(Priority[name])
            if name.isdecimal():
                value = int(name)
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= 100:
            return int(value)
        names = ", ".join(f"{p.name} ({p.value})" for p in Priority)
        raise ValueError(f"priority {value!r}: use a whole number from 0 to 100 or one of {names}")


def mount_point(method: _Method) -> _Method:
    """Mark a method of `Hook` as a mount point: a place in a run where hooks are called."""
    method.__is_mount_point__ = True  # type: ignore[attr-defined]
    return method


class Hook:
    """Base class of hooks. Override the mount points you need; the others cost nothing.

    Class attributes:
        priority: a `Priority`, its name, or a whole number 0 to 100. A hook with the smaller
            number is called first; equal ones in the order they were registered.
        opens: names of further mount points that this hook calls with `runner.call_hook`.
        trains: whether the hook does the training itself, such as backward and the optimizer's
            step; its share of the time is no overhead.
        swaps_weights: whether the hook exchanges the model's weights during validation. Only
            one hook of a run may.
        requires: names of hooks (their keys in the config) that have to be in the run as well.
        conflicts: names of hooks that must not be in the same run.
        before: names of hooks that have to be called after this one, where they are in the run.
        after: names of hooks that have to be called before this one, where they are in the run.

    The last four are contracts: they order nothing by themselves, but a run that breaks one is
    refused when its hooks are put together, and `mode=explain` lists those that apply.
    """

    priority: int | str = Priority.NORMAL
    opens: ClassVar[tuple[str, ...]] = ()
    trains: ClassVar[bool] = False
    swaps_weights: ClassVar[bool] = False
    requires: ClassVar[tuple[str, ...]] = ()
    conflicts: ClassVar[tuple[str, ...]] = ()
    before: ClassVar[tuple[str, ...]] = ()
    after: ClassVar[tuple[str, ...]] = ()

    # -- once per run ---------------------------------------------------------------------------

    @mount_point
    def before_run(self, runner: Runner) -> None:
        """Once per run, whatever its mode, before anything is loaded."""

    @mount_point
    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """A checkpoint was read, and its weights have not entered the model yet."""

    # -- training -------------------------------------------------------------------------------

    @mount_point
    def before_train(self, runner: Runner) -> None:
        """Once, before training."""

    @mount_point
    def before_train_epoch(self, runner: Runner) -> None:
        """Before each epoch; `runner.epoch` counts those that are finished."""
        self._before_epoch(runner, mode="train")

    @mount_point
    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        """Before the forward pass of a batch."""
        self._before_iter(runner, batch_idx=batch_idx, data_batch=data_batch, mode="train")

    @mount_point
    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """After the forward pass; the optimizer hook (HIGH) runs backward and steps here."""
        self._after_iter(
            runner, batch_idx=batch_idx, data_batch=data_batch, outputs=outputs, mode="train"
        )

    @mount_point
    def before_optim_step(self, runner: Runner) -> None:
        """Gradients are complete and unscaled, and not yet clipped."""

    @mount_point
    def after_optim_step(self, runner: Runner) -> None:
        """The weights were updated (not called when an fp16 step was skipped)."""

    @mount_point
    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """The checkpoint is complete and about to be written; change it in place."""

    @mount_point
    def after_train_epoch(self, runner: Runner) -> None:
        """After the last batch of an epoch; `runner.epoch` advances after this."""
        self._after_epoch(runner, mode="train")

    @mount_point
    def after_train(self, runner: Runner) -> None:
        """Once, after training, also when it was stopped early."""

    # -- validation -----------------------------------------------------------------------------

    @mount_point
    def before_val(self, runner: Runner) -> None:
        """Before each validation."""

    @mount_point
    def before_val_epoch(self, runner: Runner) -> None:
        """Before the batches of a validation."""
        self._before_epoch(runner, mode="val")

    @mount_point
    def before_val_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        """Before each batch of a validation."""
        self._before_iter(runner, batch_idx=batch_idx, data_batch=data_batch, mode="val")

    @mount_point
    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """After each batch of a validation; `outputs` is what `task.val_step` returned."""
        self._after_iter(
            runner, batch_idx=batch_idx, data_batch=data_batch, outputs=outputs, mode="val"
        )

    @mount_point
    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """The metrics of a validation are known."""
        self._after_epoch(runner, mode="val")

    @mount_point
    def after_val(self, runner: Runner) -> None:
        """After each validation."""

    # -- test -----------------------------------------------------------------------------------

    @mount_point
    def before_test(self, runner: Runner) -> None:
        """Before a test."""

    @mount_point
    def before_test_epoch(self, runner: Runner) -> None:
        """Before the batches of a test."""
        self._before_epoch(runner, mode="test")

    @mount_point
    def before_test_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        """Before each batch of a test."""
        self._before_iter(runner, batch_idx=batch_idx, data_batch=data_batch, mode="test")

    @mount_point
    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """After each batch of a test; `outputs` is what `task.test_step` returned."""
        self._after_iter(
            runner, batch_idx=batch_idx, data_batch=data_batch, outputs=outputs, mode="test"
        )

    @mount_point
    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """The metrics of a test are known."""
        self._after_epoch(runner, mode="test")

    @mount_point
    def after_test(self, runner: Runner) -> None:
        """After a test."""

    # -- the end --------------------------------------------------------------------------------

    @mount_point
    def on_exception(self, runner: Runner, error: BaseException) -> None:
        """The run failed with `error`, which goes on after this."""

    @mount_point
    def after_run(self, runner: Runner) -> None:
        """Once per run, always: also after an exception or a stop."""

    # -- fan-ins: one method for train, val and test --------------------------------------------

    def _before_epoch(self, runner: Runner, mode: Mode = "train") -> None:
        """Serves before_train_epoch, before_val_epoch and before_test_epoch."""

    def _after_epoch(self, runner: Runner, mode: Mode = "train") -> None:
        """Serves after_train_epoch, after_val_epoch and after_test_epoch."""

    def _before_iter(
        self, runner: Runner, batch_idx: int, data_batch: Batch = None, mode: Mode = "train"
    ) -> None:
        """Serves before_train_iter, before_val_iter and before_test_iter."""

    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
        mode: Mode = "train",
    ) -> None:
        """Serves after_train_iter, after_val_iter and after_test_iter."""

    # -- what a hook may say about itself -------------------------------------------------------

    def get_triggered_stages(self) -> list[str]:
        """The mount points this hook implements, itself or through a fan-in, in a run's order.

        A class that knows it has nothing to do at a point, as it is configured, leaves the point
        out here, and costs nothing there.
        """
        overridden = {name for name in dir(type(self)) if self._overrides(name)}
        for fan_in, served in FAN_INS.items():
            if fan_in in overridden:
                overridden.update(served)
        return [name for name in MOUNT_POINTS if name in overridden]

    def _overrides(self, name: str) -> bool:
        return getattr(type(self), name, None) is not getattr(Hook, name, None)

    def check_metrics(self, metric_names: Sequence[str]) -> None:
        """Told what the task will measure, before any data is loaded: refuse a wrong name here.

        Raises:
            ValueError: beginning with the parameter, such as `monitor=top1: ...`.
        """

    # -- when is it due -------------------------------------------------------------------------

    @staticmethod
    def every_n_epochs(runner: Runner, n: int, start: int = 0) -> bool:
        """Whether the epoch that is ending is the `start`-th or every `n`-th after it."""
        past = runner.epoch + 1 - start
        return n > 0 and past >= 0 and past % n == 0

    @staticmethod
    def every_n_train_iters(runner: Runner, n: int, start: int = 0) -> bool:
        """Whether the current iteration is the `start`-th or every `n`-th after it."""
        past = runner.iter + 1 - start
        return n > 0 and past >= 0 and past % n == 0

    @staticmethod
    def every_n_iters(runner: Runner, n: int) -> bool:
        """The older name of `every_n_train_iters`, used in published examples."""
        return Hook.every_n_train_iters(runner, n)

    @staticmethod
    def every_n_inner_iters(batch_idx: int, n: int) -> bool:
        """Whether the batch is every `n`-th of its epoch."""
        return n > 0 and (batch_idx + 1) % n == 0

    @staticmethod
    def end_of_epoch(dataloader: Sized, batch_idx: int) -> bool:
        """Whether the batch is the last of its epoch."""
        return batch_idx + 1 == len(dataloader)

    @staticmethod
    def is_last_train_epoch(runner: Runner) -> bool:
        """Whether the current epoch is the last of the run."""
        return runner.epoch + 1 == runner.max_epochs

    @staticmethod
    def is_last_train_iter(runner: Runner) -> bool:
        """Whether the current iteration is the last of the run."""
        return runner.iter + 1 == runner.max_iters

    @staticmethod
    def is_one_long_epoch(runner: Runner) -> bool:
        """Whether a run by iterations goes through its data more than once: it is one epoch."""
        if runner.by_epoch or runner.max_iters is None:
            return False
        return runner.max_iters > (runner.num_batches_per_epoch or 0)


MOUNT_POINTS: tuple[str, ...] = tuple(
    name for name, method in vars(Hook).items() if hasattr(method, "__is_mount_point__")
)
"""Every mount point, in the order of a run."""

FAN_INS: dict[str, tuple[str, ...]] = {
    f"_{when}_{what}": tuple(f"{when}_{mode}_{what}" for mode in ("train", "val", "test"))
    for when in ("before", "after")
    for what in ("epoch", "iter")
}
"""Each fan-in, and the mount points it serves."""

"""What is wrong in a model, a task or a data set of the user's own, told so that it is found.

But for the metrics of an evaluation, nothing is looked at before there is an error.
"""

from __future__ import annotations

import traceback
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from hookexp.errors import ConfigError, add_note, kind_of
from hookexp.message_hub import scalars_to_floats
from hookexp.numeric import stands_for_one

if TYPE_CHECKING:
    from hookexp.runner import Runner
    from hookexp.state import RunState
    from hookexp.task import Task

_CANNOT_COLLATE = ("stack expects each tensor to be equal size", "default_collate: ")
_FORWARD = ("forward_train", "forward_eval")
_MOST_ITEMS = 6
"""Parts of a batch that are told; more would hide what they are told for."""


def metrics_of(task: Task) -> dict[str, float]:
    """What a task has measured since `reset_metrics`.

    Raises:
        ConfigError: if `compute_metrics` returns anything but a dict of scalars.
    """
    metrics: Any = task.compute_metrics()
    who = f"task: {type(task).__name__}.compute_metrics"
    if not isinstance(metrics, Mapping):
        raise ConfigError(
            f"{who} returned {kind_of(metrics)}; it has to return a dict of scalars, such "
            'as {"accuracy": accuracy}, or {}'
        )
    for name, value in metrics.items():
        if isinstance(value, Tensor) and value.numel() != 1:
            raise ConfigError(
                f"{who}: {name!r} has the shape {tuple(value.shape)}; a metric is one number, such "
                "as the mean"
            )
        if not isinstance(value, Tensor) and not stands_for_one(value):
            raise ConfigError(f"{who}: {name!r} is {kind_of(value)}, and no number")
    return scalars_to_floats(metrics)


def refuse_dry_data(state: RunState, max_iters: int | None) -> None:
    """An epoch without batches would never end a run; an endless one must not end early.

    Args:
        state: where a pass over the data has ended.
        max_iters: of a run by iterations, whose data should not end.

    Raises:
        ConfigError: naming the data.
    """
    if max_iters is not None:
        raise ConfigError(
            f"data.train: gave no more batches after {state.iter} iterations, before "
            f"trainer.max_iters={max_iters}; it has to be iterable again and again"
        )
    if state.batch_in_epoch == 0:
        raise ConfigError(
            f"data.train: gave no batch in epoch {state.epoch + 1}; "
            "it has to be iterable again and again"
        )


def refuse_idle_ranks(mode: str, num_batches: Sequence[int | None]) -> None:
    """Refuse an evaluation that would hang: what ranks exchange, such as sums, needs all of them.

    Args:
        num_batches: those of each rank; None where the data cannot tell.

    Raises:
        ConfigError: on all ranks, if some have batches and one has none.
    """
    if 0 in num_batches and any(num_batches):
        raise ConfigError(
            f"data.{mode}: rank {num_batches.index(0)} has no batch of the evaluation, of which "
            f"ranks have {', '.join(map(str, num_batches))}; give each at least one"
        )


def mistake_of_the_task(error: BaseException, runner: Runner) -> ConfigError | None:
    """The message for an error that came of what `train_step` returned; None for any other."""
    outputs: Any = {}
    for frame, _ in traceback.walk_tb(error.__traceback__):
        given = frame.f_locals
        if frame.f_code.co_name == "run_iter" and given.get("self") is runner.train_loop:
            outputs = given.get("outputs", {})  # Not there before the forward pass is over.
    name = type(runner.task).__name__
    if isinstance(error, (AttributeError, TypeError)) and not isinstance(outputs, Mapping):
        return ConfigError(
            f"task: {name}.train_step returned {kind_of(outputs)}; it has to return a dict "
            'with the scalar tensor "loss", such as {"loss": loss}'
        )
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
    has_none = isinstance(loss, Tensor) and not loss.requires_grad
    if has_none and "does not require grad" in str(error):
        return ConfigError(
            f"task: the loss of {name}.train_step depends on no parameter that learns; look for "
            "detach(), no_grad() or numpy() on its way, or for a model that is frozen as a whole"
        )
    return None


def note_what_it_was_given(error: BaseException) -> None:
    """Add to an error of a forward pass what its batch was, to one of collating what helps."""
    if any(text in str(error) for text in _CANNOT_COLLATE) and not hasattr(error, "__notes__"):
        add_note(
            error,
            "samples that torch can make no batch of need a function that is called with a list "
            "of them: '+data.collate_fn={_target_: my_module.collate, _partial_: true}'",
        )
    for frame, _ in traceback.walk_tb(error.__traceback__):
        if frame.f_code.co_name in _FORWARD and "data_batch" in frame.f_locals:
            add_note(error, f"the batch was: {_structure(frame.f_locals['data_batch'])}")


def _structure(batch: Any) -> str:
    """The types and shapes of a batch: `list(float32 (16, 6), int64 (16,))`."""
    if isinstance(batch, Tensor):
        return f"{str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    if isinstance(batch, Mapping):
        return f"dict({_some([f'{key}: {_structure(value)}' for key, value in batch.items()])})"
    if isinstance(batch, (list, tuple)):
        return f"{type(batch).__name__}({_some([_structure(item) for item in batch])})"
    return type(batch).__name__


def _some(items: list[str]) -> str:
    more = [f"... {len(items)} in all"] if len(items) > _MOST_ITEMS else []
    return ", ".join([*items[:_MOST_ITEMS], *more])

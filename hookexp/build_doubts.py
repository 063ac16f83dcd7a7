"""What a training may be told before it begins: it can run, and may not do what one expects."""

from __future__ import annotations

import logging
from typing import Any

from hookexp import dist
from hookexp.hook import Hook
from hookexp.hook_list import HookList
from hookexp.optim.param_schedulers import ParamSchedulers
from hookexp.task import Task

logger = logging.getLogger("hookexp")


def tell_doubts(hooks: HookList, schedulers: ParamSchedulers, task: Task, validates: bool) -> None:
    """Warn of each, on one rank.

    Args:
        validates: whether there is data for a validation.
    """
    if dist.rank() > 0:
        return
    _tell_who_trains(hooks, task)
    if validates:
        _tell_of_unnamed_metrics(task)
    else:
        _tell_who_waits_for_validation(hooks, schedulers)


def _tell_who_trains(hooks: HookList, task: Task) -> None:
    """Warn where nobody says that it steps, which hooks made elsewhere cannot, or two do."""
    may_step = any(not isinstance(hook, Hook) for hook in hooks)
    if task.trains and "optimizer" in hooks.that_train():
        logger.warning(
            "task: %s says that it steps (trains = True), and hooks.optimizer steps too: leave one "
            "to it with hooks=-optimizer",
            type(task).__name__,
        )
    if hooks.that_train() or task.trains or may_step:
        return
    logger.warning(
        "hooks: none of this run steps the optimizer, so the weights stay as they are; keep "
        "hooks.optimizer (no hooks=none, no hooks=-optimizer), or write trains = True in the class "
        "of the hook or task of yours that steps"
    )


def _tell_who_waits_for_validation(hooks: HookList, schedulers: ParamSchedulers) -> None:
    """Warn of each that is moved by a metric, which no validation will measure."""
    watching = [f"hooks.{entry.name}" for entry in hooks.entries if _needs_metrics(entry.hook)]
    watching += ["param_scheduler"] if _needs_metrics(schedulers) else []
    for path in watching:
        logger.warning(
            "%s: waits for a metric of the validation, and data.val is null: it will do nothing by "
            "it; give data.val, or leave it out",
            path,
        )


def _tell_of_unnamed_metrics(task: Task) -> None:
    """Warn where a run cannot know its best value, since the task leaves its metrics unnamed."""
    measures = type(task).compute_metrics is not Task.compute_metrics
    if task.metric_names or not measures:
        return
    logger.warning(
        "task: %s.metric_names is empty, so the run has no best value, and a wrong name of a "
        "metric shows late; write into the class what compute_metrics returns, such as "
        'metric_names = ("loss",)',
        type(task).__name__,
    )


def _needs_metrics(part: Any) -> bool:
    """Whether a hook, or the schedulers, would refuse a task without any metric."""
    if not hasattr(part, "check_metrics"):
        return False
    try:
        part.check_metrics(())
    except ValueError:
        return True
    return False

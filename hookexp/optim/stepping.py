"""`step` and `zero_grad` of an optimizer, without what only a profiler needs.

Torch (2.13) opens a labelled range around both, and keeps its compiler out of the second,
also where nobody profiles or compiles: together that takes longer than the update of a small model.
Here the update is called directly, unless somebody would miss the range: a profiler, a hook that
was registered with the optimizer or with all of them, a method that was replaced.
"""

from __future__ import annotations

from torch.autograd import profiler
from torch.optim import Optimizer
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks

_LABELLED = Optimizer.profile_hook_step(lambda: None).__code__
"""Of the function that torch wraps around the `step` of every class of optimizers."""

_ZERO_GRAD = Optimizer.zero_grad


def step(optimizer: Optimizer) -> None:
    """The same as `optimizer.step()`."""
    method = type(optimizer).step
    if (
        getattr(method, "__code__", None) is not _LABELLED
        or "step" in vars(optimizer)
        or optimizer._optimizer_step_pre_hooks
        or optimizer._optimizer_step_post_hooks
        or _global_optimizer_pre_hooks
        or _global_optimizer_post_hooks
        or profiler._is_profiler_enabled
    ):
        optimizer.step()
    else:
        method.__wrapped__(optimizer)  # type: ignore[attr-defined]


def zero_grad(optimizer: Optimizer, set_to_none: bool) -> None:
    """The same as `optimizer.zero_grad(set_to_none)`."""
    if (
        not set_to_none
        or type(optimizer).zero_grad is not _ZERO_GRAD
        or "zero_grad" in vars(optimizer)
        or profiler._is_profiler_enabled
    ):
        optimizer.zero_grad(set_to_none)
    else:
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

"""Holding an update back on the device, where the host has not seen yet that it is needed.

A flag is a tensor of one bool, true where all is well. A fused optimizer of torch reads its
opposite, `found_inf`, in its kernel, and leaves weights and state as they are where it is set. (It
is how torch's gradient scaler skips a step; nothing here is used while that scaler is at work.)
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from hookexp import dist


def all_finite(tensors: list[Tensor], device: torch.device) -> Tensor:
    """Whether all values are finite, a flag. The largest magnitude tells of a whole tensor."""
    if len(tensors) == 1 and tensors[0].dim() == 0:
        return tensors[0].isfinite()
    tensors = [t for t in tensors if t.numel() > 0]
    if not tensors:
        return torch.ones((), dtype=torch.bool, device=device)
    largest = torch._foreach_norm(tensors, float("inf"))
    return torch.stack(largest).isfinite().all()


def both(flag: Tensor, other: Tensor | None) -> Tensor:
    return flag if other is None else flag & other


def agreed(flags: Tensor) -> Tensor:
    """Flags that stand on every rank only if they do on all, or their weights would part."""
    if dist.world_size() == 1:
        return flags
    shared = flags.float()
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MIN)
    return shared.bool()


def gradients_of(optimizers: Iterable[Optimizer]) -> list[Tensor]:
    """The gradients there are; of a sparse one the values that are stored."""
    gradients = [
        p.grad
        for optimizer in optimizers
        for group in optimizer.param_groups
        for p in group["params"]
        if p.grad is not None
    ]
    return [g._values() if g.is_sparse else g for g in gradients]


def skips_on_device(optimizer: Optimizer) -> bool:
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


class StepGuard:
    """Keeps the next step of some optimizers from doing anything where a flag is not true."""

    def __init__(self, optimizers: Iterable[Optimizer]) -> None:
        self.optimizers = list(optimizers)
        self._without_state: list[Optimizer] = []

    def allow_if(self, flag: Tensor) -> None:
        """Call before the step; the host waits for the flag unless all optimizers are fused."""
        found_inf = flag.logical_not().float()
        for optimizer in self.optimizers:
            if skips_on_device(optimizer):
                optimizer.found_inf = found_inf  # type: ignore[attr-defined]
                if not optimizer.state:
                    self._without_state.append(optimizer)
            elif not flag:
                # Parameters without gradient are left alone by every optimizer of torch.
                optimizer.zero_grad(set_to_none=True)

    def release(self) -> None:
        """Call after the step.

        A fused SGD whose very first step is held back leaves its momentum uninitialised (torch
        2.6 to 2.13, `_fused_sgd`); it has to begin with zeros.
        """
        for optimizer in self._without_state:
            if not hasattr(optimizer, "found_inf"):
                continue  # Another guard of the same step was here before.
            for state in optimizer.state.values():
                momentum = state.get("momentum_buffer")
                if momentum is not None:
                    momentum.masked_fill_(optimizer.found_inf.bool(), 0.0)
        self._without_state = []
        for optimizer in self.optimizers:
            if hasattr(optimizer, "found_inf"):
                del optimizer.found_inf


class KeptTensors:
    """Tensors of one type and their values of before, packed: few calls do it for all of them."""

    def __init__(self, tensors: list[Tensor]) -> None:
        self._tensors = tensors
        self._before, self._views_before = _packed(tensors)
        self._now, self._views_now = _packed(tensors)

    def remember(self) -> None:
        torch._foreach_copy_(self._views_before, self._tensors)

    def restore_unless(self, flag: Tensor) -> None:
        torch._foreach_copy_(self._views_now, self._tensors)
        torch.where(flag, self._now, self._before, out=self._now)
        torch._foreach_copy_(self._tensors, self._views_now)


def keep_floats(tensors: Iterable[Tensor]) -> list[KeptTensors]:
    """The floating-point tensors among some, by type."""
    by_dtype: dict[torch.dtype, list[Tensor]] = {}
    for tensor in tensors:
        if tensor.is_floating_point():
            by_dtype.setdefault(tensor.dtype, []).append(tensor)
    return [KeptTensors(group) for group in by_dtype.values()]


def _packed(tensors: list[Tensor]) -> tuple[Tensor, list[Tensor]]:
    flat = torch.cat([tensor.detach().reshape(-1) for tensor in tensors])
    parts = torch.split(flat, [tensor.numel() for tensor in tensors])
    return flat, [part.view(t.shape) for part, t in zip(parts, tensors, strict=True)]

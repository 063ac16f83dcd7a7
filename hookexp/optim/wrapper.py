"""`OptimWrapper`: the mathematics of an optimizer step, in one order and one place.

    backward      loss / window, scaled when the precision is fp16
    unscale       gradients are complete and true     -> mount point before_optim_step
    clip          by norm or by value
    step          skipped by the scaler if a gradient is not finite
    zero_grad                                         -> mount point after_optim_step

`Runner.optimizer_step` calls it and fires the mount points, whoever asks for the step: the
optimizer hook, or a task with several optimizers that steps by itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from hookexp.optim import stepping
from hookexp.optim.states import OptimizerStates, parameters_of
from hookexp.optim.windows import Windows

_CLIP_KEYS = ("max_norm", "norm_type", "clip_value")


class OptimWrapper:
    """The optimizers of a run by name, with gradient scaling and clipping.

    Args:
        optimizers: name to optimizer; a run with one calls it `default`.
        scaler: torch's gradient scaler; disabled unless the precision is fp16.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer], scaler: torch.amp.GradScaler) -> None:
        self.optimizers = dict(optimizers)
        self._first = next(iter(self.optimizers.values()))
        self.scaler = scaler
        self.max_norm: float | None = None
        self.norm_type = 2.0
        self.clip_value: float | None = None
        self.set_to_none = True
        self.windows = Windows()
        """Which iterations share a step, as the optimizer hook has set it."""
        self._unscaled: set[str | None] = set()
        self._scale_is_due = False
        """Whether the scaler has seen steps since its scale was last updated."""
        self.states = OptimizerStates(self.optimizers)

    @property
    def optimizer(self) -> Optimizer:
        """The optimizer of a run that has one, else the first."""
        return self._first

    def is_leading(self, name: str | None) -> bool:
        """Whether an optimizer is the one whose steps are the clock of the run: the first."""
        return name is None or name == next(iter(self.optimizers))

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        """The parameter groups of all optimizers, in their order."""
        return [group for o in self.optimizers.values() for group in o.param_groups]

    def get_lr(self) -> dict[str, list[float]]:
        """The learning rate of every parameter group, as `{"lr": [...]}`."""
        return {"lr": [float(group["lr"]) for group in self.param_groups]}

    def get_momentum(self) -> dict[str, list[float]]:
        """SGD's momentum, or the first beta of Adam and its kin, of every parameter group."""
        return {"momentum": [_momentum_of(group) for group in self.param_groups]}

    def set_clipping(self, grad_clip: Mapping[str, Any]) -> None:
        """Clip from now on as `checked_clip` allows; an empty mapping: not at all."""
        self.max_norm = grad_clip.get("max_norm")
        self.norm_type = grad_clip.get("norm_type", 2.0)
        self.clip_value = grad_clip.get("clip_value")

    def fix_loss_scale(self, scale: float) -> None:
        """Scale losses by a number that never changes; nothing to do unless fp16."""
        if self.scaler.is_enabled():
            self.scaler = torch.amp.GradScaler(self.scaler._device, init_scale=scale)
            self.scaler.set_growth_factor(1.0)
            self.scaler.set_backoff_factor(1.0)

    def backward(self, loss: Tensor, window: int = 1) -> None:
        """Add the gradients of `loss / window`, scaled when the precision is fp16."""
        loss = loss / window if window != 1 else loss
        if self.scaler.is_enabled():
            self._update_scale()
            loss = self.scaler.scale(loss)
        loss.backward()  # type: ignore[no-untyped-call]

    def unscale(self, name: str | None = None) -> None:
        """Make the gradients true; nothing to do unless the precision is fp16."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self._named(name))
            self._unscaled.add(name)

    def clip(self, name: str | None = None) -> Tensor | None:
        """Clip the gradients as set; returns their norm before that when clipping by norm."""
        if self.max_norm is None and self.clip_value is None:
            return None
        parameters = parameters_of(self._named(name))
        if self.max_norm is not None:
            return clip_grad_norm_(parameters, self.max_norm, self.norm_type)
        assert self.clip_value is not None
        clip_grad_value_(parameters, self.clip_value)
        return None

    def step(self, name: str | None = None) -> bool:
        """Update the weights and forget the gradients; False if the scaler skipped the update."""
        optimizer = self._named(name)
        if not self.scaler.is_enabled():
            stepping.step(optimizer)
            stepping.zero_grad(optimizer, self.set_to_none)
            return True
        if name not in self._unscaled:
            self.unscale(name)
        self._unscaled.discard(name)
        # The scaler leaves skipping to a fused optimizer, which then counts as having stepped and,
        # at its very first step, keeps momentum buffers it never filled (torch 2.13). So it is
        # asked here, once per step; fp16 has to wait for that in any case.
        found = self.scaler._found_inf_per_device(optimizer).values()
        is_finite = not any(bool(value) for value in found)
        if is_finite:
            self.scaler.step(optimizer)
        # Other optimizers may have gradients of the same scale still to step with.
        self._scale_is_due = True
        stepping.zero_grad(optimizer, self.set_to_none)
        return is_finite

    def _update_scale(self) -> None:
        if self._scale_is_due:
            self.scaler.update()
        self._scale_is_due = False

    def zero_grad(self) -> None:
        for optimizer in self.optimizers.values():
            stepping.zero_grad(optimizer, self.set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """What `OptimizerStates` has, and the scaler's state."""
        self._update_scale()
        return {**self.states.state_dict(), "scaler": self.scaler.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""
        self.states.load_state_dict(state)
        ours, saved = self.scaler.state_dict(), state["scaler"]
        if _is_dynamic(ours) and _is_dynamic(saved):
            self.scaler.load_state_dict(saved)

    def _named(self, name: str | None) -> Optimizer:
        if name is None:
            return self._first
        if name not in self.optimizers:
            raise ValueError(f"no optimizer {name!r}; the config has: {', '.join(self.optimizers)}")
        return self.optimizers[name]


def checked_clip(grad_clip: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are given, of `max_norm`, `norm_type` and `clip_value`.

    Raises:
        ValueError: beginning with `grad_clip`.
    """
    if not isinstance(grad_clip, Mapping):
        raise ValueError(f"grad_clip={grad_clip}: has to be a mapping, such as {{max_norm: 1.0}}")
    unknown = [key for key in grad_clip if key not in _CLIP_KEYS]
    if unknown:
        raise ValueError(f"grad_clip.{unknown[0]}: use {', '.join(_CLIP_KEYS)}")
    given = {key: value for key, value in grad_clip.items() if value is not None}
    if given.get("norm_type") == "inf":  # As yaml reads it; a number would be .inf there.
        given["norm_type"] = math.inf
    if "max_norm" in given and "clip_value" in given:
        raise ValueError("grad_clip: give max_norm or clip_value, not both")
    for key, value in given.items():
        if not isinstance(value, (int, float)) or not value > 0:
            raise ValueError(f"grad_clip.{key}={value}: use a number above 0")
    return given


def _momentum_of(group: dict[str, Any]) -> float:
    return float(group["betas"][0] if "betas" in group else group.get("momentum", 0.0))


def _is_dynamic(scaler: Mapping[str, Any]) -> bool:
    """Whether a scaler's state moves; one that is fixed is as the config says, as is one anew."""
    return bool(scaler) and scaler["growth_factor"] != 1.0

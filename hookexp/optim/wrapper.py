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

import copy
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_, clip_grad_value_
from torch.optim import Optimizer

from hookexp.errors import ConfigError
from hookexp.optim import stepping
from hookexp.optim.fused_sgd import fill_momentum
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
        self._names: dict[int, str] = {}
        self._configured: dict[str, list[dict[str, Any]]] = {name: [] for name in self.optimizers}
        self.note_added_groups()

    def name_parameters(self, model: nn.Module) -> None:
        """Know parameters by their names in a model, so that their states find them again."""
        self._names = {id(p): name for name, p in model.named_parameters()}

    def note_added_groups(self) -> None:
        """Take groups that were added since as configured the way they are; before any step."""
        for name, optimizer in self.optimizers.items():
            noted = self._configured[name]
            added = optimizer.param_groups[len(noted) :]
            noted += [copy.deepcopy(_without_params(group)) for group in added]

    def refuse_states_that_cannot_be_loaded(self) -> None:
        """Refuse an optimizer whose state has a layout of its own, before there is one to lose.

        Raises:
            ConfigError: naming the optimizer and what its state lacks.
        """
        for name, optimizer in self.optimizers.items():
            state = optimizer.state_dict()
            missing = [key for key in ("state", "param_groups") if key not in state]
            if missing:
                path = "optimizer" if name == "default" else f"optimizer.{name}"
                raise ConfigError(
                    f"{path}: {type(optimizer).__name__}.state_dict() has no "
                    f"{' and no '.join(map(repr, missing))}, so that a resumed run could not give "
                    "it back; keep what it needs in self.state[parameter], and leave state_dict "
                    "and load_state_dict to torch.optim.Optimizer"
                )

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
        parameters = _parameters_of(self._named(name))
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
        """States of optimizers and scaler, and gradients of a window that is still open.

        `names` and `dtypes` have the parameters in the order of the optimizers' own numbering,
        `configured` the hyper-parameters that the run began with.
        """
        self._update_scale()
        return {
            "kinds": {name: type(o).__name__ for name, o in self.optimizers.items()},
            "names": {name: self.names_of(name) for name in self.optimizers},
            "dtypes": {
                name: [p.dtype for p in _parameters_of(o)] for name, o in self.optimizers.items()
            },
            "configured": self._configured,
            "optimizers": {name: _plain(o.state_dict()) for name, o in self.optimizers.items()},
            "scaler": self.scaler.state_dict(),
            "gradients": {
                name: [None if p.grad is None else p.grad for p in _parameters_of(o)]
                for name, o in self.optimizers.items()
            },
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned, each parameter's by its name.

        What a state does not have starts fresh. A hyper-parameter that the config has changed
        since is as the config says now.
        """
        self.note_added_groups()
        for name, optimizer in self.optimizers.items():
            if state["kinds"].get(name) != type(optimizer).__name__:
                continue
            place = {saved: index for index, saved in enumerate(state["names"][name])}
            places = [place.get(known) for known in self.names_of(name)]
            saved = state["optimizers"][name]
            optimizer.load_state_dict(
                {
                    **saved,
                    "state": _moved(saved["state"], places),
                    "param_groups": self._merged(name, state),
                }
            )
            gradients = state["gradients"][name]
            dtypes = state.get("dtypes", {}).get(name)  # Older checkpoints do not say.
            for parameter, index in zip(_parameters_of(optimizer), places, strict=True):
                gradient = None if index is None else gradients[index]
                parameter.grad = None if gradient is None else _laid_out_as(parameter, gradient)
                if index in saved["state"] and dtypes and dtypes[index] == parameter.dtype:
                    optimizer.state[parameter] = _in_types_of(
                        saved["state"][index], optimizer.state[parameter]
                    )
                entries = optimizer.state.get(parameter, {})
                for key, value in entries.items():
                    # The count of steps has no layout, and a place of its own.
                    if isinstance(value, Tensor) and value.dim() and value.shape == parameter.shape:
                        entries[key] = _laid_out_as(parameter, value)
            fill_momentum(optimizer)
        ours, saved = self.scaler.state_dict(), state["scaler"]
        if _is_dynamic(ours) and _is_dynamic(saved):
            self.scaler.load_state_dict(saved)

    def names_of(self, name: str) -> list[str]:
        """An optimizer's parameters by name, in its order; by number where no model names them."""
        parameters = _parameters_of(self.optimizers[name])
        return [self._names.get(id(p), f"[{n}]") for n, p in enumerate(parameters)]

    def _merged(self, name: str, state: Mapping[str, Any]) -> list[dict[str, Any]]:
        """The groups there are, with the values that have changed in training and not by hand.

        Optimizers without schedules keep their progress in their groups; where the config says
        what it said before, that is taken, else what it says now.
        """
        merged: list[dict[str, Any]] = self.optimizers[name].state_dict()["param_groups"]
        before, saved = state["configured"][name], state["optimizers"][name]["param_groups"]
        if len(saved) != len(merged):
            return merged
        # Checkpoints were written that did not note the groups which hooks had added.
        before = [*before, *self._configured[name][len(before) :]]
        for now, group, was, saved_group in zip(
            self._configured[name], merged, before, saved, strict=True
        ):
            for key, value in saved_group.items():
                if key == "capturable":  # The run's own hooks set it, and torch counts steps by it.
                    continue
                if key not in group or (key in now and key in was and _equal(now[key], was[key])):
                    group[key] = value
        return merged

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


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A value on a parameter's device and in its memory layout, in which fused steps read both.

    A sparse gradient has none.
    """
    if value.layout is not torch.strided or value.stride() == parameter.stride():
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _parameters_of(optimizer: Optimizer) -> list[Tensor]:
    return [p for group in optimizer.param_groups for p in group["params"]]


def _moved(state: Mapping[Any, Any], places: list[int | None]) -> dict[Any, Any]:
    """An optimizer's state under other numbers; what is not of a parameter stays as it is."""
    moved = {key: value for key, value in state.items() if not isinstance(key, int)}
    moved.update({new: state[old] for new, old in enumerate(places) if old in state})
    return moved


def _in_types_of(saved: Any, loaded: Any) -> Any:
    """What torch has loaded, in the types it was saved in.

    `Optimizer.load_state_dict` casts all but `step` to the type of the parameter: masks to numbers,
    fp32 masters of bf16 weights to bf16 (torch 2.13).
    """
    if isinstance(saved, Tensor) and isinstance(loaded, Tensor):
        return loaded if loaded.dtype == saved.dtype else saved.to(loaded.device)
    if isinstance(saved, dict) and isinstance(loaded, dict):
        return {
            key: value if key == "step" else _in_types_of(saved.get(key), value)
            for key, value in loaded.items()
        }
    if type(loaded) in (list, tuple) and isinstance(saved, (list, tuple)):
        return type(loaded)(map(_in_types_of, saved, loaded))
    return loaded


def _equal(one: Any, two: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        return torch.equal(one.cpu(), two.cpu())
    return bool(one == two) if type(one) is type(two) else False


def _plain(state: dict[str, Any]) -> dict[str, Any]:
    """The state with Python's numbers for NumPy's, which a hook may have set in a group."""
    groups = [
        {k: v.item() if isinstance(v, np.generic) else v for k, v in group.items()}
        for group in state["param_groups"]
    ]
    return {**state, "param_groups": groups}


def _without_params(group: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in group.items() if key != "params"}

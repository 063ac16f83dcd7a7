"""`OptimizerStates`: what a checkpoint holds of the optimizers, and how it finds back."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hookexp.errors import ConfigError
from hookexp.optim.fused_sgd import fill_momentum
from hookexp.optim.group_values import GroupValues
from hookexp.optim.shared_groups import shared_groups


def config_path(name: str) -> str:
    """Where an optimizer stands in the config, by its name."""
    return "optimizer" if name == "default" else f"optimizer.{name}"


class OptimizerStates:
    """The states of the optimizers of a run, which may be continued with others.

    Parameters are known by their names, and hyper-parameters by what they were configured as.

    Args:
        optimizers: by name.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        self.optimizers = optimizers
        self.group_values = GroupValues(optimizers)
        self._names: dict[int, str] = {}
        self._configured: dict[str, list[dict[str, Any]]] = {name: [] for name in optimizers}
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

    def refuse_those_that_cannot_be_loaded(self) -> None:
        """Refuse an optimizer whose state has a layout of its own, before there is one to lose.

        Raises:
            ConfigError: naming the optimizer and what its state lacks.
        """
        for name, optimizer in self.optimizers.items():
            state = optimizer.state_dict()
            missing = [key for key in ("state", "param_groups") if key not in state]
            if missing:
                path = config_path(name)
                raise ConfigError(
                    f"{path}: {type(optimizer).__name__}.state_dict() has no "
                    f"{' and no '.join(map(repr, missing))}, so that a resumed run could not give "
                    "it back; keep what it needs in self.state[parameter], and leave state_dict "
                    "and load_state_dict to torch.optim.Optimizer"
                )

    def state_dict(self) -> dict[str, Any]:
        """States of optimizers, and gradients of a window that is still open.

        `names` and `dtypes` have the parameters in the order of the optimizers' own numbering,
        `configured` the hyper-parameters that the run began with, `at_start` what hooks had made of
        them when training began.
        """
        return {
            "kinds": {name: type(o).__name__ for name, o in self.optimizers.items()},
            "names": {name: self.names_of(name) for name in self.optimizers},
            "dtypes": {
                name: [p.dtype for p in parameters_of(o)] for name, o in self.optimizers.items()
            },
            "configured": self._configured,
            "at_start": self.group_values.state_dict(),
            "optimizers": {name: _plain(o.state_dict()) for name, o in self.optimizers.items()},
            "gradients": {
                name: [None if p.grad is None else p.grad for p in parameters_of(o)]
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
            if state["kinds"].get(name) == type(optimizer).__name__:
                self._load(name, optimizer, state)

    def hold_back_group_values(self, state: Mapping[str, Any]) -> None:
        """Of a state that was loaded; before training, which `group_values` puts them back into."""
        if "at_start" in state:  # Older checkpoints do not say.
            self.group_values.hold_back(state["at_start"], self._configured)

    def names_of(self, name: str) -> list[str]:
        """An optimizer's parameters by name, in its order; by number where no model names them."""
        parameters = parameters_of(self.optimizers[name])
        return [self._names.get(id(p), f"[{n}]") for n, p in enumerate(parameters)]

    def _load(self, name: str, optimizer: Optimizer, state: Mapping[str, Any]) -> None:
        place = {saved: index for index, saved in enumerate(state["names"][name])}
        places = [place.get(known) for known in self.names_of(name)]
        saved, gradients = state["optimizers"][name], state["gradients"][name]
        moved, groups = _moved(saved["state"], places), self._merged(name, state)
        with shared_groups(optimizer):
            optimizer.load_state_dict({**saved, "state": moved, "param_groups": groups})
        dtypes = state.get("dtypes", {}).get(name)  # Older checkpoints do not say.
        for parameter, index in zip(parameters_of(optimizer), places, strict=True):
            gradient = None if index is None else gradients[index]
            parameter.grad = None if gradient is None else _laid_out_as(parameter, gradient)
            if index in saved["state"] and dtypes and dtypes[index] == parameter.dtype:
                optimizer.state[parameter] = _in_types_of(
                    saved["state"][index], optimizer.state[parameter]
                )
            _lay_out(optimizer.state.get(parameter, {}), parameter)
        fill_momentum(optimizer)

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


def parameters_of(optimizer: Optimizer) -> list[Tensor]:
    """The parameters of all groups, in the order of the optimizer's own numbering."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def _lay_out(entries: dict[str, Any], parameter: Tensor) -> None:
    """Have what is of a parameter's shape in its layout; a count of steps stays where it is."""
    for key, value in entries.items():
        if isinstance(value, Tensor) and value.dim() and value.shape == parameter.shape:
            entries[key] = _laid_out_as(parameter, value)


def _laid_out_as(parameter: Tensor, value: Tensor) -> Tensor:
    """A value on a parameter's device and in its memory layout, in which fused steps read both.

    A sparse gradient has none.
    """
    if value.layout is not torch.strided or value.stride() == parameter.stride():
        return value.to(parameter.device)
    return torch.empty_like(parameter, dtype=value.dtype).copy_(value)


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

"""`ScheduledEntry`: one number of every parameter group, such as `lr`, and what sets it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from hookexp.errors import ConfigError
from hookexp.optim.param_scheduler import ParamScheduler

_Write = Callable[[float], Any]


class ScheduledEntry:
    """One entry of all parameter groups and its schedulers, in the order they compose.

    Called after every optimizer step, so it decides ahead of time how each group is written.
    """

    def __init__(
        self, param_name: str, schedulers: Sequence[ParamScheduler], optimizers: list[Optimizer]
    ) -> None:
        self.param_name = param_name
        self.maps = [(scheduler.apply, scheduler.counts_epochs) for scheduler in schedulers]
        self.follows_epochs = any(scheduler.counts_epochs for scheduler in schedulers)
        self.follows_steps = not all(scheduler.counts_epochs for scheduler in schedulers)
        self.optimizers = optimizers
        self.bases: list[list[float]] = [[] for _ in optimizers]
        self.flat_bases: list[float] = []
        self.writes: list[_Write] = []
        self.seen: list[tuple[Optimizer, list[dict[str, Any]], int]] = []
        self.epoch = self.optim_steps = -1
        self._find_groups()

    def update(self, epoch: int, optim_steps: int) -> None:
        """Write the values for a position, unless it is the one they were written for."""
        for optimizer, groups, num_groups in self.seen:
            if optimizer.param_groups is not groups or len(groups) != num_groups:
                self._find_groups()
                break
        else:
            if (optim_steps == self.optim_steps or not self.follows_steps) and (
                epoch == self.epoch or not self.follows_epochs
            ):
                return
        self.epoch, self.optim_steps = epoch, optim_steps
        for write, value in zip(self.writes, self._scheduled(), strict=True):
            write(value)

    def values(self) -> dict[str, list[float]]:
        """What the schedules have `set`, and what the groups hold: hooks may have changed it."""
        held = [float(_read(g, self.param_name)) for o in self.optimizers for g in o.param_groups]
        return {"set": self._scheduled(), "held": held}

    def put_back(self, values: Mapping[str, list[float]]) -> None:
        """Let the groups hold what they held, if the schedules have set the same as then."""
        if values["set"] == self._scheduled():
            for write, held in zip(self.writes, values["held"], strict=False):
                write(held)

    def _scheduled(self) -> list[float]:
        values = self.flat_bases
        for apply, counts_epochs in self.maps:
            values = apply(values, self.epoch if counts_epochs else self.optim_steps)
        return values

    def forget_position(self) -> None:
        """Make the next update write, whatever its position."""
        self.epoch = self.optim_steps = -1

    def _find_groups(self) -> None:
        """Look the groups up anew: loading an optimizer's state replaces them, and hooks add some.

        A group's base is the value it had when it was first seen.
        """
        self.seen = [(o, o.param_groups, len(o.param_groups)) for o in self.optimizers]
        self.writes = []
        for optimizer, bases in zip(self.optimizers, self.bases, strict=True):
            for index, group in enumerate(optimizer.param_groups):
                if index == len(bases):
                    bases.append(float(_read(group, self.param_name)))
                group[f"initial_{self.param_name}"] = bases[index]
                self.writes.append(_writer(group, self.param_name))
        self.flat_bases = [base for bases in self.bases for base in bases]
        self.forget_position()


def require_entry(group: Mapping[str, Any], param_name: str, path: str) -> None:
    """Refuse what is no number in a group.

    Args:
        path: the scheduler's place in the config, for the message.

    Raises:
        ConfigError: listing the group's entries.
    """
    if param_name not in group and not _is_first_beta(group, param_name):
        keys = sorted(k for k in group if k != "params" and not k.startswith("initial_"))
        raise ConfigError(
            f"{path}.param_name={param_name}: the optimizer's parameter groups have no such entry; "
            f"they have: {', '.join(keys)}"
        )
    value = _read(group, param_name)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number and not (isinstance(value, Tensor) and value.numel() == 1):
        raise ConfigError(
            f"{path}.param_name={param_name}: its value in the optimizer's parameter groups is "
            f"{value!r}, which is not a number"
        )


def _is_first_beta(group: Mapping[str, Any], param_name: str) -> bool:
    return param_name == "momentum" and "momentum" not in group and "betas" in group


def _read(group: Mapping[str, Any], param_name: str) -> Any:
    return group["betas"][0] if _is_first_beta(group, param_name) else group[param_name]


def _writer(group: dict[str, Any], param_name: str) -> _Write:
    """The way to set an entry of a group; a tensor is filled, since CUDA graphs hold on to it."""
    current = _read(group, param_name)
    if isinstance(current, Tensor):
        return current.fill_
    if _is_first_beta(group, param_name):

        def write_first_beta(value: float) -> None:
            group["betas"] = (value, *group["betas"][1:])

        return write_first_beta
    return partial(group.__setitem__, param_name)

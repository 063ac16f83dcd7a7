"""Numbers and tensors that the model's modules, the task and optimizers keep as plain attributes.

A recurrent model may keep its hidden state from batch to batch, a task a counter, a running mean or
a memory bank. Which attributes those are shows when they change: the first steps of a process are
looked at, before and after. What an evaluation alone changes, such as a list of predictions, and
what hooks set is no part of it. An optimizer of one's own may count its steps in itself; nobody
else changes that, so what it is at a save says enough.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from hookexp import dist
from hookexp.checkpoint.digest import digests
from hookexp.checkpoint.task_parts import is_learned, parts_of
from hookexp.data.tracking import GENERATORS
from hookexp.device import map_tensors
from hookexp.task import Task

logger = logging.getLogger("hookexp")

_Step = Callable[[nn.Module, Any], dict[str, Any]]
_Optimizers = Iterable[tuple[str, Optimizer]]
_LOOKS = 8
_ATOMS = (type(None), bool, int, float, complex, str, bytes)
_KEYS = (bool, int, float, str)
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_LONG = 4096
"""Items from which on only the length of a list or dict is looked at: a vocabulary, a buffer."""
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class OwnValues:
    """Of an object that keeps something else too, such as a NumPy array, a line says that once.

    Nothing of such an object is held: a half of what it keeps may not go with the other half.
    """

    def __init__(self, model: nn.Module, task: Task, optimizers: _Optimizers) -> None:
        self._model = dist.unwrap(model)
        self._task = task
        self._optimizers = {
            "optimizer" if name == "default" else f"optimizer.{name}": optimizer
            for name, optimizer in optimizers
        }
        self._began = self._look_at(self._optimizers.items())
        self._changing: dict[str, set[str]] = {}
        """Attributes that steps have changed, by the path of their owner."""
        self._mixed: set[str] = set()
        """Owners that keep something which cannot be held."""
        self._num_looks = 0

    def watched(self, train_step: _Step) -> _Step:
        """A train_step that is looked at in its first calls."""

        def step(model: nn.Module, batch: Any) -> dict[str, Any]:
            if self._num_looks == _LOOKS or _is_being_captured():
                return train_step(model, batch)
            before = self._look_at(self._parts())
            outputs = train_step(model, batch)
            self._compare(before, self._look_at(self._parts()))
            self._num_looks += 1
            return outputs

        return step

    def state_dict(self) -> dict[str, Any]:
        """By owner and attribute, each with whether its tensors are where the model is."""
        self._compare(self._began, self._look_at(self._optimizers.items()))
        device, owners = self._device(), self._owners()
        held: dict[str, Any] = {}
        for path, names in self._changing.items():
            values = {n: v for n, v in _attributes(owners.get(path)).items() if n in names}
            can_be = {n: v for n, v in sorted(values.items()) if _can_be_held(v)}
            if path not in self._mixed:
                held[path] = {n: [v, _is_on(device, v)] for n, v in can_be.items()}
        # Ranks tell each other what they hold in plain bytes.
        return held if dist.world_size() == 1 else dict(map_tensors(held, Tensor.cpu))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what there still is; of the rest one line says that it begins anew."""
        device, owners = self._device(), self._owners()
        for path, values in state.items():
            if path not in owners:
                logger.warning("%s is not what it was in the checkpoint, and begins anew", path)
                continue
            self._changing.setdefault(path, set()).update(values)
            for name, (value, is_with_model) in values.items():
                to = device if is_with_model else torch.device("cpu")
                _set(owners[path], name, map_tensors(value, partial(Tensor.to, device=to)))

    def _device(self) -> torch.device:
        parameter = next(self._model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def _look_at(self, owners: Iterable[tuple[str, Any]]) -> dict[str, dict[str, Any]]:
        return {
            path: {
                name: _trace(value)
                for name, value in _attributes(owner).items()
                if all(value is not one for one in self._optimizers.values())
            }
            for path, owner in owners
        }

    def _compare(
        self, before: Mapping[str, Mapping[str, Any]], after: Mapping[str, Mapping[str, Any]]
    ) -> None:
        owners = self._owners()
        for path, traces in after.items():
            were = before.get(path, {})
            changed = {
                name
                for name, trace in traces.items()
                if trace is not None and (name not in were or were[name] != trace)
            }
            lost = [n for n in sorted(changed) if not _can_be_held(_attributes(owners[path])[n])]
            if lost and self._num_looks > 0:
                self._give_up(path, lost[0], _attributes(owners[path])[lost[0]])
            elif changed and not lost:  # A first step makes caches, as does the first of a resume.
                self._changing.setdefault(path, set()).update(changed)

    def _give_up(self, path: str, name: str, value: Any) -> None:
        if path not in self._mixed and dist.rank() == 0:
            logger.warning(
                "%s.%s (%s) changes in training and is in no checkpoint: a run that is resumed is "
                "exact only if nothing depends on what it, or another attribute there, was before; "
                "keep numbers, lists and tensors, or have it in a state_dict of its own",
                *(path, name, type(value).__name__),
            )
        self._mixed.add(path)

    def _owners(self) -> dict[str, Any]:
        return {**dict(self._parts()), **self._optimizers}

    def _parts(self) -> Iterator[tuple[str, Any]]:
        parts: list[tuple[str, Any]] = [("model", self._model)]
        if not hasattr(self._task, "state_dict"):
            yield "task", self._task
            parts += parts_of(self._task)
        for prefix, part in parts:
            if isinstance(part, nn.Module):
                for name, module in part.named_modules():
                    has_own_state = type(module).get_extra_state is not nn.Module.get_extra_state
                    if not has_own_state and not isinstance(module, DistributedDataParallel):
                        yield f"{prefix}.{name}".rstrip("."), module


def _attributes(owner: Any) -> dict[str, Any]:
    hidden: Collection[str] = ()
    if isinstance(owner, nn.Module):
        hidden = _OF_EVERY_MODULE
    elif isinstance(owner, Optimizer):
        hidden = _of_every_optimizer()
    return {
        name: value for name, value in getattr(owner, "__dict__", {}).items() if name not in hidden
    }


@cache
def _of_every_optimizer() -> frozenset[str]:
    return frozenset(vars(Optimizer([torch.zeros(1)], {})))


def _trace(value: Any) -> Any:
    """What is equal at two times if the value was the same; None for what is held elsewhere.

    That is a part of the task, a generator, what belongs to one step since it has a graph, and what
    holds some of these.
    """
    if isinstance(value, Tensor):
        is_elsewhere = is_learned(value) or value.grad_fn is not None
        return None if is_elsewhere else (value.shape, value.dtype, digests([value]))
    if isinstance(value, (nn.Module, *GENERATORS)):
        return None
    if isinstance(value, _ATOMS):
        return type(value), repr(value)
    if isinstance(value, _CONTAINERS) and len(value) > _LONG:
        return _Itself(value), len(value)
    if isinstance(value, _CONTAINERS):
        traces = [_trace(v) for v in (value.values() if isinstance(value, dict) else value)]
        is_elsewhere = any(trace is None for trace in traces)
        keys = [*value] if isinstance(value, dict) else []
        return None if is_elsewhere else (type(value), keys, traces)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.shape, value.tobytes()
    state = _trace(value.state_dict()) if isinstance(value, Optimizer) else None
    return _Itself(value), state


class _Itself:
    """Equal to itself, and to what says that it is equal: a device, a path, a member of an enum."""

    def __init__(self, value: Any) -> None:
        self._value = value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Itself):
            return False
        if other._value is self._value:
            return True
        try:
            return type(other._value) is type(self._value) and bool(other._value == self._value)
        except Exception:  # An array of a library that has no single answer.
            return False

    __hash__ = None  # type: ignore[assignment]


def _can_be_held(value: Any) -> bool:
    if type(value) is dict:
        return all(type(key) in _KEYS for key in value) and all(map(_can_be_held, value.values()))
    if type(value) in (list, tuple):
        return all(map(_can_be_held, value))
    if type(value) is Tensor:
        return value.layout is torch.strided and _trace(value) is not None
    return type(value) in _ATOMS and not isinstance(value, complex)


def _is_being_captured() -> bool:
    """While a CUDA graph is captured, no value can be looked at."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    return torch.cuda.is_current_stream_capturing()


def _is_on(device: torch.device, value: Any) -> bool:
    places = set()

    def look(tensor: Tensor) -> Tensor:
        places.add(tensor.device)
        return tensor

    map_tensors(value, look)
    return places == {device}


def _set(owner: Any, name: str, value: Any) -> None:
    """A tensor in place where it fits: others may have it too."""
    held = getattr(owner, name, None)
    if isinstance(held, Tensor) and isinstance(value, Tensor) and _fits(held, value):
        with torch.no_grad():
            held.copy_(value)
    else:
        setattr(owner, name, value)


def _fits(one: Tensor, two: Tensor) -> bool:
    return (one.shape, one.dtype, one.device) == (two.shape, two.dtype, two.device)

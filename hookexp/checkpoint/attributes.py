"""Plain attributes of modules, tasks and optimizers: which there are, what they were."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sized
from functools import cache
from operator import is_
from typing import Any
from weakref import ref

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from hookexp.checkpoint.digest import version
from hookexp.checkpoint.plain_form import PLAIN, from_plain
from hookexp.checkpoint.rank_buffers import HANDS_OUT_BUFFERS
from hookexp.checkpoint.trace import ELSEWHERE, Trace

ABSENT = Trace(form="absent")
"""Of an attribute that was not there."""
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


class Began:
    """What an owner's attributes were; most are numbers that nobody ever changes."""

    def __init__(self, owner: Any, trace: Callable[[Any], Trace]) -> None:
        attributes = attributes_of(owner)
        constants = {n: v for n, v in attributes.items() if type(v) in PLAIN}
        self._constants, self._values = [*constants], [*constants.values()]
        self._others = dict.fromkeys(name for name in attributes if name not in constants)
        self._num_attributes = len(_all_of(owner))
        self._trace = trace
        self._were = {n: _reference(attributes[n]) for n in self._others}
        self.traces: dict[str, Trace] = {name: trace(v) for name, v in attributes.items()}

    def changes(self, owner: Any) -> Iterator[tuple[str, Any, Trace, Trace]]:
        """Name and value of what may be another, with its traces then and now."""
        if self._has_the_same_constants(_all_of(owner)):
            found = {name: owner.__dict__[name] for name in self._others}
        else:
            found = attributes_of(owner)
        for name, value in found.items():
            now = self._trace(value)
            if now is not ELSEWHERE:
                yield name, value, self.traces.get(name, ABSENT), now

    def _has_the_same_constants(self, attributes: Mapping[str, Any]) -> bool:
        """Whether they are there as they were, and no attribute has come or gone."""
        if len(attributes) != self._num_attributes or not attributes.keys() >= self._others.keys():
            return False
        try:
            return all(map(is_, map(attributes.__getitem__, self._constants), self._values))
        except KeyError:
            return False

    def is_the_same(self, name: str, value: Any) -> bool:
        """Whether a value is the tensor, list or object that was there, whatever it holds now."""
        return name in self._were and self._were[name]() is value


def _reference(value: Any) -> Callable[[], Any]:
    """A weak one where there are such: not of lists and dicts, of which most are small."""
    try:
        return ref(value)
    except TypeError:
        return lambda: value


Mark = tuple[int, int, int]


def mark_of(value: Any) -> Mark:
    """What tells at a glance that a value is another, or has been added to."""
    if isinstance(value, Tensor):
        return id(value), 0, version(value)
    try:
        return id(value), len(value) if isinstance(value, Sized) else 0, 0
    except Exception:  # An array without dimensions, a loader of data that has no length.
        return id(value), 0, 0


def modules_in(path: str, part: Any) -> Iterator[tuple[str, nn.Module]]:
    """Those of which nothing else says what they keep, by path; none if it is no module."""
    if isinstance(part, nn.Module):
        for name, module in part.named_modules():
            if _keeps_values(module.__class__):
                yield f"{path}.{name}" if name else path, module


@cache
def _keeps_values(kind: Any) -> bool:
    """Whether modules of a class may have what no `get_extra_state` says."""
    return bool(kind.get_extra_state is nn.Module.get_extra_state)


def attributes_of(owner: Any) -> dict[str, Any]:
    """Those of its own, without what all modules or optimizers have."""
    attributes = _all_of(owner)
    if isinstance(owner, DistributedDataParallel):
        # A copy that the task keeps; the rest belongs to the ranks' exchange of gradients.
        return {HANDS_OUT_BUFFERS: attributes[HANDS_OUT_BUFFERS]}
    if isinstance(owner, nn.Module):
        return {name: attributes[name] for name in attributes if name not in _OF_EVERY_MODULE}
    if isinstance(owner, Optimizer):
        hidden = _of_every_optimizer()
        return {name: value for name, value in attributes.items() if name not in hidden}
    return dict(attributes)


@cache
def _of_every_optimizer() -> frozenset[str]:
    return frozenset(vars(Optimizer([torch.zeros(1)], {})))


def _all_of(owner: Any) -> dict[str, Any]:
    return getattr(owner, "__dict__", {})


def set_attribute(owner: Any, name: str, value: Any, in_place: bool) -> None:
    """Of what `to_plain` made; in place what is still the tensor, list or object of before.

    Others may have it too. In place of one that has become another nothing is written: others may
    have that one as well.
    """
    held: Any = getattr(owner, name, None)
    value = from_plain(value, held, in_place)
    if not in_place or not _write(held, value):
        setattr(owner, name, value)


def _write(held: Any, value: Any) -> bool:
    """Make one what the other is; returns whether it can be that."""
    if isinstance(held, Tensor) and isinstance(value, Tensor):
        fits = (held.shape, held.dtype, held.device) == (value.shape, value.dtype, value.device)
    elif isinstance(held, np.ndarray) and isinstance(value, np.ndarray):
        fits = held.flags.writeable and (held.shape, held.dtype) == (value.shape, value.dtype)
    else:
        return _fill(held, value)
    if fits:
        with torch.no_grad():
            held[...] = value
    return fits


def _fill(held: Any, value: Any) -> bool:
    if type(held) is not type(value) or not isinstance(held, (list, deque, set, dict)):
        return False
    if getattr(held, "maxlen", None) != getattr(value, "maxlen", None):
        return False
    held.clear()
    held.extend(value) if isinstance(held, (list, deque)) else held.update(value)
    return True

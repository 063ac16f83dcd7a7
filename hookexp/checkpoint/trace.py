"""`trace`: what a value was, to compare it with what it is later."""

from __future__ import annotations

import io
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.sharedctypes import Synchronized
from typing import Any
from weakref import ProxyTypes

import numpy as np
import torch
from torch import Tensor, nn

from hookexp.checkpoint.digest import Digest, version
from hookexp.checkpoint.plain_form import (
    CONTAINERS,
    DEEPEST,
    PLAIN,
    can_be_held,
    has_state,
    is_long,
    is_of_values,
    values_of,
)
from hookexp.seed import GENERATORS

_MANY = 2**20
"""Elements of a tensor or array from which on some are looked at, evenly spread."""
_FEW = 32
"""Items of a list that may be iterators."""


@dataclass
class Trace:
    """What a value was; its digests are numbers once they were `read`."""

    form: Any = None
    """All but what tensors hold."""
    digests: list[Digest] = field(default_factory=list)

    def is_of_the_same_as(self, other: Trace) -> bool:
        """Whether both are of equal values. Their digests have been read."""
        return self.form == other.form and all(
            one.number == two.number for one, two in zip(self.digests, other.digests, strict=True)
        )


ELSEWHERE = Trace()
"""Of what is held elsewhere, a part of the task or a generator, and what holds some of these."""


def trace(value: Any, elsewhere: Sequence[Any] = ()) -> Trace:
    """Of a value. The host waits for no device.

    What has a state of its own is never the same again: it says itself what it is, at a save. Nor
    is an iterator, which says nothing.

    Args:
        elsewhere: what counts as the same inside of a value, whatever of it changes; a tensor there
            is a weight.
    """
    found = Trace()
    if moves_on(value):
        found.form = object()
        return found
    seen = {id(one): (number, one) for number, one in enumerate(elsewhere)}
    found.form = _form(value, found.digests, seen)
    return ELSEWHERE if found.form is None else found


def moves_on(value: Any) -> bool:
    """Whether it is an iterator, or a few of them, and cannot say where it stands."""
    if isinstance(value, (dict, list, tuple)):
        few = (value.values() if isinstance(value, dict) else value) if len(value) <= _FEW else ()
        return not PLAIN.issuperset(map(type, few)) and any(map(_is_iterator, few))
    return _is_iterator(value)


def _is_iterator(value: Any) -> bool:
    is_one = isinstance(value, Iterator) and not isinstance(value, io.IOBase)
    # A weak reference to anything has a __next__, in case that has one.
    return is_one and type(value) not in ProxyTypes and not can_be_held(value)


def _form(
    value: Any, digests: list[Digest], seen: dict[int, tuple[int, Any]], levels: int = 0
) -> Any:
    """Of a value; what was `seen` in it already is told by its number."""
    if type(value) in PLAIN or type(value) is complex:
        return type(value), value if isinstance(value, int) else repr(value)
    if isinstance(value, Tensor):
        is_weight = isinstance(value, nn.Parameter) or id(value) in seen
        return None if is_weight else _form_of_tensor(value, digests)
    if isinstance(value, GENERATORS):
        return _Itself(value) if levels > 0 else None
    if isinstance(value, nn.Module):
        return None
    if isinstance(value, Synchronized):
        return type(value), repr(value.value)
    if levels > DEEPEST:
        return _Itself(value)
    if is_long(value):
        return _Itself(value), len(value)
    if id(value) in seen:
        return _Again, seen[id(value)][0]
    if isinstance(value, CONTAINERS) or is_of_values(value):
        seen[id(value)] = len(seen), value  # Kept, so that no other gets its id.
        holds = value if isinstance(value, CONTAINERS) else values_of(value)
        items = holds.values() if isinstance(holds, dict) else holds
        forms = [_form(item, digests, seen, levels + 1) for item in items]
        keys = [*map(_Itself, holds)] if isinstance(holds, dict) else []
        return None if any(form is None for form in forms) else (type(value), keys, forms)
    if isinstance(value, (np.ndarray, np.generic)):
        some = value.reshape(-1)[:: value.size // _MANY + 1]
        return value.shape, value.dtype, hash(some.tobytes())
    if isinstance(value, (bytearray, array)):
        return type(value), bytes(value)
    return object() if has_state(value) else _Itself(value)


def _form_of_tensor(tensor: Tensor, digests: list[Digest]) -> Any:
    if tensor.numel() <= _MANY or tensor.layout is not torch.strided:
        digests.append(Digest(tensor))
        return tensor.shape, tensor.dtype
    digests.append(Digest(tensor.detach().reshape(-1)[:: tensor.numel() // _MANY + 1]))
    return tensor.shape, tensor.dtype, version(tensor)


class _Again:
    """Says that a value has been seen already."""


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

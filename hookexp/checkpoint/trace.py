"""`trace`: what a value was, to compare it with what it is later; what a checkpoint can hold."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hookexp.checkpoint.digest import Digest
from hookexp.checkpoint.task_parts import is_learned
from hookexp.data.tracking import GENERATORS

_ATOMS = (type(None), bool, int, float, complex, str, bytes)
_CAN_BE_HELD = (type(None), bool, int, float, str, bytes, torch.Size, torch.dtype)
_KEYS = (bool, int, float, str)
_CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_LONG = 4096
"""Items from which on only the length of a list or dict is looked at: a vocabulary, a buffer."""


@dataclass
class Trace:
    """Two of equal values have the same form, and digests of the same numbers."""

    form: Any = None
    """All but what tensors hold."""
    digests: list[Digest] = field(default_factory=list)


def trace(value: Any, elsewhere: Sequence[Any] = ()) -> Trace | None:
    """Of a value; None for what is held elsewhere. The host waits for no device.

    That is a part of the task, a generator, what belongs to one step since it has a graph, and what
    holds some of these.

    Args:
        elsewhere: what counts as the same inside of a value, whatever of it changes.
    """
    found = Trace()
    seen = {id(one): (number, one) for number, one in enumerate(elsewhere)}
    found.form = _form(value, found.digests, seen)
    return None if found.form is None else found


def can_be_held(value: Any, inside: tuple[int, ...] = ()) -> bool:
    """Whether it is of tensors and plain types, and does not lead back to one it is `inside` of."""
    if type(value) in (dict, list, tuple):
        if id(value) in inside:
            return False
        items = [*value.values()] if type(value) is dict else value
        keys_can_be = type(value) is not dict or all(type(key) in _KEYS for key in value)
        return keys_can_be and all(can_be_held(item, (*inside, id(value))) for item in items)
    if type(value) is Tensor:
        return value.layout is torch.strided and not _is_elsewhere(value)
    return type(value) in _CAN_BE_HELD


def _form(value: Any, digests: list[Digest], seen: dict[int, tuple[int, Any]]) -> Any:
    """Of a value; what was `seen` in it already is told by its number."""
    if isinstance(value, Tensor):
        if _is_elsewhere(value):
            return None
        digests.append(Digest(value))
        return value.shape, value.dtype
    if isinstance(value, (nn.Module, *GENERATORS)):
        return None
    if isinstance(value, _ATOMS):
        return type(value), value if isinstance(value, int) else repr(value)
    if isinstance(value, _CONTAINERS) and len(value) > _LONG:
        return _Itself(value), len(value)
    if id(value) in seen:
        return _Again, seen[id(value)][0]
    if isinstance(value, _CONTAINERS):
        seen[id(value)] = len(seen), value  # Kept, so that no other gets its id.
        items = value.values() if isinstance(value, dict) else value
        forms = [_form(item, digests, seen) for item in items]
        keys = [*value] if isinstance(value, dict) else []
        return None if any(form is None for form in forms) else (type(value), keys, forms)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.shape, value.tobytes()
    state = _form(value.state_dict(), digests, seen) if isinstance(value, Optimizer) else None
    return _Itself(value), state


def _is_elsewhere(tensor: Tensor) -> bool:
    return is_learned(tensor) or tensor.grad_fn is not None


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

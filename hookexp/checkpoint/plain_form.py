"""Values that are not plain, as tensors and plain types, and back: arrays, deques, sets and so on.

An object that has `state_dict` and `load_state_dict`, such as an optimizer of the task's own, is
told by its state, and one that has nothing but values in its attributes, such as a meter, by those.
It has to be there again when a run is resumed, and takes them then.
"""

from __future__ import annotations

import sys
from argparse import Namespace
from collections import Counter, OrderedDict, UserDict, UserList, defaultdict, deque
from collections.abc import Callable, Iterable
from enum import Enum
from functools import cache
from multiprocessing.sharedctypes import Synchronized
from types import MemberDescriptorType, SimpleNamespace
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

PLAIN = frozenset((type(None), bool, int, float, str, bytes, torch.Size, torch.dtype))
CONTAINERS = (dict, list, tuple, set, frozenset, deque)
_LONG = 4096
"""Items from which on only the length of a list or dict is looked at: a vocabulary, a buffer."""
DEEPEST = 100
"""Levels of a nested value that are looked at."""
_KEYS = frozenset((bool, int, float, str))
_DICTS: dict[str, Any] = {kind.__name__: kind for kind in (OrderedDict, Counter, defaultdict)}
_ROWS = {kind.__name__: kind for kind in (deque, set, frozenset)}
_OF_OTHERS = sys.stdlib_module_names | {"torch", "hookexp"}
"""Packages whose objects are more than values, or none: locks, functions, parts of the run."""
_OPEN = frozenset((Namespace, SimpleNamespace, UserDict, UserList))
"""Those of Python's classes whose objects are values and nothing more."""
_NUMBERS = "biufcSUmM"
"""Kinds of NumPy's numbers, texts and times: those that are not objects."""
_KIND = "kind, as hookexp holds it"
"""A key that says that a dict stands for something else."""


def can_be_held(value: Any, inside: tuple[int, ...] = ()) -> bool:
    """Whether it can be made plain, and does not lead back to one it is `inside` of, nor far."""
    kind: Any = type(value)
    if kind in PLAIN or kind is complex or isinstance(value, Enum):
        return True
    if kind is Tensor:
        return value.layout is torch.strided
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in _NUMBERS
    if id(value) in inside or len(inside) > DEEPEST:
        return False
    inside = (*inside, id(value))
    if kind is dict or kind in _DICTS.values():
        return _KEYS.issuperset(map(type, value)) and _all_can_be_held(value.values(), inside)
    if isinstance(value, Synchronized):
        return True
    if kind in (list, tuple) or kind in _ROWS.values() or _is_named_tuple(kind):
        return _all_can_be_held(value, inside)
    if has_state(value):
        return can_be_held(_state_of(value), inside)
    return _may_be_of_values(kind) and can_be_held(values_of(value), inside)


@cache
def _is_named_tuple(kind: Any) -> bool:
    """Whether it is a class that a run finds again, of tuples whose items have names."""
    is_one = issubclass(kind, tuple) and hasattr(kind, "_fields")
    return is_one and _class_of(kind.__module__, kind.__qualname__) is kind


def _class_of(module: str, name: str) -> Any:
    """A class that is there by now; nothing is imported by what a checkpoint says."""
    return vars(sys.modules[module]).get(name) if module in sys.modules else None


def _all_can_be_held(values: Iterable[Any], inside: tuple[int, ...]) -> bool:
    return PLAIN.issuperset(map(type, values)) or all(can_be_held(v, inside) for v in values)


def has_state(value: Any) -> bool:
    """Whether it says what it is and can be put back; parts of the run itself do that elsewhere."""
    if isinstance(value, (nn.Module, DataLoader, type)):
        return False
    if type(value).__module__.startswith("hookexp.") and not hasattr(value, "is_held_by_its_owner"):
        return False
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def is_long(value: Any) -> bool:
    """Of a list, dict and so on."""
    return isinstance(value, CONTAINERS) and len(value) > _LONG


def is_of_values(value: Any) -> bool:
    """Whether it is an object whose attributes say what it is, as far as a look at it tells."""
    kind: Any = type(value)
    if has_state(value) or not _may_be_of_values(kind):
        return False
    short = [one for one in values_of(value).values() if not is_long(one)]
    return _all_can_be_held(short, (id(value),))


@cache
def _may_be_of_values(kind: Any) -> bool:
    """Of a class of somebody's own that is no kind of text, list and so on, and no enum."""
    if kind in _OPEN:
        return True
    if kind.__module__.partition(".")[0] in _OF_OTHERS or issubclass(kind, (nn.Module, Enum)):
        return False
    return kind.__new__ is object.__new__ and (kind.__dictoffset__ != 0 or bool(_slots_of(kind)))


@cache
def may_be_looked_into(kind: Any) -> bool:
    """Whether objects of a class of somebody's own have all that they keep in their dict."""
    return _may_be_of_values(kind) and kind.__dictoffset__ != 0 and not _slots_of(kind)


@cache
def _slots_of(kind: Any) -> frozenset[str]:
    """The names that objects of a class have room for, by `__slots__`, beside a dict or without."""
    bases = [vars(base).items() for base in kind.__mro__]
    slots = (n for base in bases for n, v in base if isinstance(v, MemberDescriptorType))
    return frozenset(slots) - {"__dict__"}  # As a SimpleNamespace has it.


def values_of(value: Any) -> dict[str, Any]:
    """An object's attributes by name: those of its dict, and those that it has slots for."""
    own: dict[str, Any] = getattr(value, "__dict__", {})
    kind: Any = type(value)
    slots = sorted(_slots_of(kind))
    return {**{n: getattr(value, n) for n in slots if hasattr(value, n)}, **own} if slots else own


def to_plain(value: Any) -> Any:
    """Of a value that can be held; itself where it is plain."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if isinstance(value, Enum):
        return {_KIND: "enum", "of": kind.__name__, "name": value.name}
    if isinstance(value, Tensor):
        is_leaf = value.requires_grad and value.is_leaf
        return {_KIND: "leaf", "values": value.detach()} if is_leaf else value.detach()
    if kind is dict:
        return {key: to_plain(item) for key, item in value.items()}
    if kind in (list, tuple):
        return value if PLAIN.issuperset(map(type, value)) else kind(map(to_plain, value))
    if isinstance(value, tuple):
        of = [kind.__module__, kind.__qualname__]
        return {_KIND: "named tuple", "of": of, "items": [*map(to_plain, value)]}
    if kind is complex:
        return {_KIND: "complex", "parts": [value.real, value.imag]}
    if isinstance(value, (np.ndarray, np.generic)):
        order: Literal["F", "C"] = "F" if value.flags.fnc else "C"
        about = {"dtype": value.dtype.str, "shape": list(value.shape), "order": order}
        return {_KIND: _kind_of_array(value), "bytes": value.tobytes(order), **about}
    if isinstance(value, Synchronized):
        return {_KIND: "shared", "value": value.value}
    if kind in _DICTS.values():
        items = {key: to_plain(item) for key, item in value.items()}
        return {_KIND: kind.__name__, "items": items}
    if kind in _ROWS.values():
        rows = [*map(to_plain, value)]
        if kind is deque:
            return {_KIND: kind.__name__, "items": rows, "maxlen": value.maxlen}
        return {_KIND: kind.__name__, "items": sorted(rows, key=repr)}  # A set has no order.
    if has_state(value):
        return {_KIND: "state", "of": kind.__name__, "state": to_plain(value.state_dict())}
    return {_KIND: "object", "of": kind.__name__, "items": to_plain(values_of(value))}


def from_plain(saved: Any, held: Any, in_place: bool = False) -> Any:
    """What `to_plain` was given; `held` is what is there now: an object takes its state.

    Args:
        in_place: whether an object of values takes them too, or a new one of its class does.

    Raises:
        LookupError: if it takes something that is not there.
    """
    if type(saved) is dict:
        if _KIND in saved:
            return _MAKERS[saved[_KIND]](saved, held, in_place)
        return _items(saved, held, in_place)
    if type(saved) in (list, tuple) and not PLAIN.issuperset(map(type, saved)):
        fits = isinstance(held, (list, tuple)) and len(held) == len(saved)
        pairs = zip(saved, held if fits else [None] * len(saved), strict=True)
        return type(saved)(from_plain(*pair, in_place) for pair in pairs)
    return saved


def _items(saved: dict[Any, Any], held: Any, in_place: bool) -> dict[Any, Any]:
    known = held if isinstance(held, dict) else {}
    return {key: from_plain(item, known.get(key), in_place) for key, item in saved.items()}


def _state_of(value: Any) -> Any:
    try:
        return value.state_dict()
    except Exception:  # It may want arguments; the object itself is nothing that can be held.
        return value


def _kind_of_array(value: Any) -> str:
    return "array" if isinstance(value, np.ndarray) else "scalar"


def _leaf(saved: dict[str, Any], held: Any, in_place: bool) -> Any:
    """A tensor that requires grad; in place, since an optimizer may have it too."""
    values = saved["values"]
    if in_place and type(held) is Tensor and held.shape == values.shape and held.is_leaf:
        with torch.no_grad():
            return held.copy_(values)
    return values.clone().requires_grad_()


def _array(saved: dict[str, Any], held: Any, in_place: bool) -> Any:
    flat = np.frombuffer(saved["bytes"], dtype=saved["dtype"])
    return flat.reshape(saved["shape"], order=saved["order"]).copy(saved["order"])


def _rows(saved: dict[str, Any], held: Any, in_place: bool) -> Any:
    known = [*held] if isinstance(held, deque) else None
    items = from_plain(saved["items"], known, in_place)
    kind = _ROWS[saved[_KIND]]
    if kind is deque:
        return deque(items, saved["maxlen"])
    return kind(items)


def _dict(saved: dict[str, Any], held: Any, in_place: bool) -> Any:
    kind, items = saved[_KIND], _items(saved["items"], held, in_place)
    if kind != defaultdict.__name__:
        return _DICTS[kind](items)
    if not isinstance(held, defaultdict):
        raise LookupError("a defaultdict has to be there, which knows its function")
    return defaultdict(held.default_factory, items)


def _named_tuple(saved: dict[str, Any], held: Any, in_place: bool) -> Any:
    kind = _class_of(*saved["of"])
    items = from_plain(saved["items"], [*held] if isinstance(held, tuple) else None, in_place)
    is_one = isinstance(kind, type) and _is_named_tuple(kind)
    if not is_one or len(kind._fields) != len(items):
        raise LookupError(f"a {saved['of'][-1]} with {len(items)} fields has to be there")
    return tuple.__new__(kind, items)


def _state(saved: dict[str, Any], held: Any, in_place: bool) -> Any:
    if not has_state(held) or type(held).__name__ != saved["of"]:
        raise LookupError(f"a {saved['of']} has to be there")
    held.load_state_dict(from_plain(saved["state"], None))
    return held


def _shared(saved: dict[str, Any], held: Any, in_place: bool) -> Any:
    """A number in memory that processes share, such as workers of a loader."""
    if not isinstance(held, Synchronized):
        raise LookupError("a number that processes share has to be there")
    held.value = saved["value"]
    return held


def _enum(saved: dict[str, Any], held: Any, in_place: bool) -> Any:
    if not isinstance(held, Enum) or type(held).__name__ != saved["of"]:
        raise LookupError(f"a {saved['of']} has to be there")
    return type(held)[saved["name"]]


def _object(saved: dict[str, Any], held: Any, in_place: bool) -> Any:
    kind: Any = type(held)
    if not _may_be_of_values(kind) or kind.__name__ != saved["of"]:
        raise LookupError(f"a {saved['of']} has to be there")
    items, slots = _items(saved["items"], values_of(held), in_place), _slots_of(kind)
    if kind.__dictoffset__ == 0 and not slots.issuperset(items):
        raise LookupError(f"a {saved['of']} has slots for other attributes now")
    target = held if in_place else kind.__new__(kind)
    for name in slots & values_of(target).keys():
        object.__delattr__(target, name)
    for name in slots & items.keys():
        object.__setattr__(target, name, items.pop(name))  # It may be frozen otherwise.
    if kind.__dictoffset__ != 0:
        vars(target).clear()
        vars(target).update(items)
    return target


_MAKERS: dict[str, Callable[[dict[str, Any], Any, bool], Any]] = {
    "complex": lambda saved, held, in_place: complex(*saved["parts"]),
    "leaf": _leaf,
    "array": _array,
    "scalar": lambda saved, held, in_place: _array(saved, held, in_place)[()],
    "enum": _enum,
    "shared": _shared,
    "named tuple": _named_tuple,
    "state": _state,
    "object": _object,
    **dict.fromkeys(_ROWS, _rows),
    **dict.fromkeys(_DICTS, _dict),
}

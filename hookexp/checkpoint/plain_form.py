"""Values that are not plain, as tensors and plain types, and back: arrays, deques, sets and so on.

An object that has `state_dict` and `load_state_dict`, such as an optimizer of the task's own, is
told by its state. It has to be there again when a run is resumed, and takes the state then.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hookexp.checkpoint.task_parts import is_learned

PLAIN = frozenset((type(None), bool, int, float, str, bytes, torch.Size, torch.dtype))
_KEYS = (bool, int, float, str)
_DICTS = {kind.__name__: kind for kind in (OrderedDict, Counter, defaultdict)}
_ROWS = {kind.__name__: kind for kind in (deque, set, frozenset)}
_NUMBERS = "biufcSUmM"
"""Kinds of NumPy's numbers, texts and times: those that are not objects."""
_KIND = "kind, as hookexp holds it"
"""A key that says that a dict stands for something else."""


def can_be_held(value: Any, inside: tuple[int, ...] = ()) -> bool:
    """Whether it can be made plain, and does not lead back to one it is `inside` of."""
    kind = type(value)
    if kind in PLAIN or kind is complex:
        return True
    if kind is Tensor:
        return value.layout is torch.strided and not is_learned(value)
    if isinstance(value, (np.ndarray, np.generic)):
        return value.dtype.kind in _NUMBERS
    if id(value) in inside:
        return False
    inside = (*inside, id(value))
    if kind is dict or kind in _DICTS.values():
        items = value.values()
        return all(type(k) in _KEYS for k in value) and all(can_be_held(i, inside) for i in items)
    if kind in (list, tuple) or kind in _ROWS.values():
        return PLAIN.issuperset(map(type, value)) or all(can_be_held(i, inside) for i in value)
    return has_state(value) and can_be_held(_state_of(value), inside)


def has_state(value: Any) -> bool:
    """Whether it says what it is and can be put back; parts of the run itself do that elsewhere."""
    if isinstance(value, (nn.Module, DataLoader, type)) or type(value).__module__.startswith(
        "hookexp."
    ):
        return False
    return hasattr(value, "state_dict") and hasattr(value, "load_state_dict")


def to_plain(value: Any) -> Any:
    """Of a value that can be held; itself where it is plain."""
    kind = type(value)
    if kind in PLAIN:
        return value
    if isinstance(value, Tensor):
        return value.detach()
    if kind is dict:
        return {key: to_plain(item) for key, item in value.items()}
    if kind in (list, tuple):
        return value if PLAIN.issuperset(map(type, value)) else kind(map(to_plain, value))
    if kind is complex:
        return {_KIND: "complex", "parts": [value.real, value.imag]}
    if isinstance(value, (np.ndarray, np.generic)):
        order: Literal["F", "C"] = "F" if value.flags.fnc else "C"
        about = {"dtype": value.dtype.str, "shape": list(value.shape), "order": order}
        return {_KIND: _kind_of_array(value), "bytes": value.tobytes(order), **about}
    if kind in _DICTS.values():
        items = {key: to_plain(item) for key, item in value.items()}
        return {_KIND: kind.__name__, "items": items}
    if kind in _ROWS.values():
        rows = [*map(to_plain, value)]
        if kind is deque:
            return {_KIND: kind.__name__, "items": rows, "maxlen": value.maxlen}
        return {_KIND: kind.__name__, "items": sorted(rows, key=repr)}  # A set has no order.
    return {_KIND: "state", "of": kind.__name__, "state": to_plain(value.state_dict())}


def from_plain(saved: Any, held: Any) -> Any:
    """What `to_plain` was given; `held` is what is there now: an object takes its state.

    Raises:
        LookupError: if it takes something that is not there.
    """
    if type(saved) is dict:
        if _KIND in saved:
            return _MAKERS[saved[_KIND]](saved, held)
        known = held if isinstance(held, dict) else {}
        return {key: from_plain(item, known.get(key)) for key, item in saved.items()}
    if type(saved) in (list, tuple) and not PLAIN.issuperset(map(type, saved)):
        fits = isinstance(held, (list, tuple)) and len(held) == len(saved)
        pairs = zip(saved, held if fits else [None] * len(saved), strict=True)
        return type(saved)(from_plain(*pair) for pair in pairs)
    return saved


def _state_of(value: Any) -> Any:
    try:
        return value.state_dict()
    except Exception:  # It may want arguments; the object itself is nothing that can be held.
        return value


def _kind_of_array(value: Any) -> str:
    return "array" if isinstance(value, np.ndarray) else "scalar"


def _array(saved: dict[str, Any], held: Any) -> Any:
    flat = np.frombuffer(saved["bytes"], dtype=saved["dtype"])
    return flat.reshape(saved["shape"], order=saved["order"]).copy(saved["order"])


def _scalar(saved: dict[str, Any], held: Any) -> Any:
    return _array(saved, None)[()]


def _rows(saved: dict[str, Any], held: Any) -> Any:
    items = from_plain(saved["items"], None)
    kind = _ROWS[saved[_KIND]]
    if kind is deque:
        return deque(items, saved["maxlen"])
    return kind(items)


def _dict(saved: dict[str, Any], held: Any) -> Any:
    kind, items = _DICTS[saved[_KIND]], from_plain(saved["items"], None)
    if kind is not defaultdict:
        return kind(items)
    if not isinstance(held, defaultdict):
        raise LookupError("a defaultdict has to be there, which knows its function")
    return defaultdict(held.default_factory, items)


def _state(saved: dict[str, Any], held: Any) -> Any:
    if not has_state(held) or type(held).__name__ != saved["of"]:
        raise LookupError(f"a {saved['of']} has to be there")
    held.load_state_dict(from_plain(saved["state"], None))
    return held


_MAKERS: dict[str, Callable[[dict[str, Any], Any], Any]] = {
    "complex": lambda saved, held: complex(*saved["parts"]),
    "array": _array,
    "scalar": _scalar,
    "state": _state,
    **dict.fromkeys(_ROWS, _rows),
    **dict.fromkeys(_DICTS, _dict),
}

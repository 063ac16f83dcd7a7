"""The order of what a data set is made of, which a resumed run has to find again.

A list that is made of a set, or of a folder as the file system lists it, has another order in the
next process, and so has a split by a generator without a seed. Sample 7 is another one then, or
word 7, and nothing would say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import PosixPath, WindowsPath
from types import ModuleType
from typing import Any
from zlib import crc32

import numpy as np
import torch

_MOST = 100_000
"""Items of a list that is looked at; more take longer than it is worth."""
_FEW = 32
"""Parts of a data set that is made of others."""
_PLAIN = {str, bytes, int, float, bool, PosixPath, WindowsPath}

Orders = dict[str, list[int]]
"""By the path of a list, mapping or array: its length, a sum over its items, one of their order."""


def orders_of(source: Any, path: str, depth: int = 5) -> Orders:
    """Of what is in the attributes of an object, and of the objects that it is made of.

    Args:
        path: of the object, such as `data.train`.
        depth: how far down objects and lists of them are looked into.
    """
    found: Orders = {}
    _look_into(source, path, depth, found, set())
    return found


def what_differs(then: Mapping[str, list[int]], now: Mapping[str, list[int]]) -> str:
    """What has another order than then, in words; empty if nothing has.

    Other items are not told, such as files below another folder.
    """
    changed = [
        path
        for path, (length, items, order) in now.items()
        if path in then and then[path][:2] == [length, items] and then[path][2] != order
    ]
    if not changed:
        return ""
    return (
        f"{', '.join(changed)}: the same items as before the resume, in another order, so what a "
        "sample or a number means is not what it was; sort what is made of a set or of a folder's "
        "files, and give a seed to what is shuffled"
    )


def _look_into(source: Any, path: str, depth: int, found: Orders, seen: set[int]) -> None:
    if depth < 0 or id(source) in seen or isinstance(source, (type, ModuleType)):
        return
    seen.add(id(source))
    kind = type(source)
    if kind in (np.ndarray, torch.Tensor):
        source, kind = _values_of(source), list
    if kind in (list, tuple):
        if 1 < len(source) <= _MOST and _are_plain(source):
            found[path] = [len(source), _sum(source), _chained(source)]
        elif len(source) <= _FEW:
            for number, part in enumerate(source):
                _look_into(part, f"{path}[{number}]", depth - 1, found, seen)
    elif kind is dict:
        if 1 < len(source) <= _MOST and _are_plain(source) and _are_plain(source.values()):
            # What goes with what; the order in which they were added is seldom asked for.
            parts = _sum(source), _sum(source.values())
            found[path] = [len(source), crc32(repr(parts).encode()), _sum(source.items())]
    else:
        for name, part in list(getattr(source, "__dict__", {}).items()):
            _look_into(part, f"{path}.{name}", depth - 1, found, seen)


def _values_of(array: Any) -> list[Any]:
    """Those of one dimension; none of a tensor that has no plain memory."""
    if array.ndim == 1 and len(array) <= _MOST:
        with suppress(RuntimeError):
            return list(array.tolist())
    return []


def _are_plain(items: Iterable[Any]) -> bool:
    kinds = set(map(type, items))
    if kinds == {tuple}:
        return {type(part) for item in items for part in item} <= _PLAIN
    return kinds <= _PLAIN


def _sum(items: Iterable[Any]) -> int:
    """Of their digests, in whatever order."""
    return sum(crc32(repr(item).encode(errors="replace")) for item in items)


def _chained(items: Iterable[Any]) -> int:
    """One digest of them in their order."""
    digest = 0
    for item in items:
        digest = crc32(repr(item).encode(errors="replace"), digest)
    return digest

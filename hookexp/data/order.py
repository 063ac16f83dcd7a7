"""The order of what a data set is made of, which a resumed run has to find again.

A list that is made of a set, or of a folder as the file system lists it, has another order in the
next process, and so has a split by a generator without a seed. Sample 7 is another one then, or
word 7, and nothing would say so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import PosixPath, WindowsPath
from typing import Any
from zlib import crc32

import numpy as np
import torch

from hookexp.data.settings import joined, owners_of

_MOST = 100_000
"""Items of a list that is looked at; more take longer than it is worth."""
_FEW = 32
"""Parts of a data set that is made of others."""
_PLAIN = {str, bytes, int, float, bool, PosixPath, WindowsPath}

Orders = dict[str, list[int]]
"""By the path of a list, mapping or array: its length, a sum over its items, one of their order."""


def orders_of(source: Any, path: str, depth: int = 4) -> Orders:
    """Of what is in the attributes of an object, and of the objects that it is made of.

    Args:
        path: of the object, such as `data.train`.
        depth: how many objects may be in one another.
    """
    return {
        where: row
        for inner, owner in owners_of(source, depth)
        for name, value in list(vars(owner).items())
        for where, row in _rows_in(value, joined(path, inner, name))
    }


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


def _rows_in(value: Any, path: str, levels: int = 3) -> Iterator[tuple[str, list[int]]]:
    """Of an attribute: itself, or those in a few lists or mappings."""
    if type(value) in (np.ndarray, torch.Tensor):
        value = _values_of(value)
    if type(value) not in (list, tuple, dict) or len(value) > _MOST or levels == 0:
        return
    is_mapping = type(value) is dict
    items = value.values() if is_mapping else value
    if not (_are_plain(items) and _are_plain(value)):
        if len(value) <= _FEW:
            for name, part in value.items() if is_mapping else enumerate(value):
                yield from _rows_in(part, f"{path}.{name}", levels - 1)
    elif len(value) > 1:
        # Of a mapping what goes with what counts: how it was filled is seldom asked for.
        parts = (_sum(value), _sum(items)) if is_mapping else (_sum(value),)
        order = _sum(value.items()) if is_mapping else _chained(value)
        yield path, [len(value), crc32(repr(parts).encode()), order]


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

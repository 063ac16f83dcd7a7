"""What may be set on a data set: attributes of it, and of what it is made of, that are no data."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from itertools import chain, islice
from multiprocessing.sharedctypes import Synchronized
from typing import Any

import numpy as np
from torch import Tensor, nn
from torch.utils.data import IterableDataset

from hookexp.checkpoint.digest import Digest, version
from hookexp.checkpoint.plain_form import CONTAINERS, PLAIN, can_be_held, has_state
from hookexp.checkpoint.trace import Trace, trace

_SHORT, _SMALL = 32, 4096
"""Items of a row and elements of a tensor that are looked at, and not only which one it is."""
_DEPTH, _LEVELS = 4, 12
"""Objects, and whatever, that one of them may be inside of."""
_LOOKED_AT = 2
"""Batches that show what reading changes; the first one may open files."""
_OF_PYTHON = sys.stdlib_module_names | {"builtins"}

Key = tuple[str, str]
"""The path of an object, empty for the data set itself, and the name of an attribute."""


class Settings:
    """Of a map-style data set, as they are now; none of another."""

    def __init__(self, data_set: Any) -> None:
        self.small: dict[Key, Any] = {}
        """Numbers, texts, and short rows of them."""
        self.others: dict[Key, Any] = {}
        is_stream = isinstance(data_set, IterableDataset) or not hasattr(data_set, "__getitem__")
        for where, owner in () if is_stream else owners_of(data_set):
            for name, value in list(vars(owner).items()):
                (self.small if _is_small(value) else self.others)[where, name] = value
        self.traces: dict[Key, Trace] = {key: trace(value) for key, value in self.small.items()}
        everything = chain(self.small.items(), self.others.items())
        self._versions = {key: version(one) for key, one in everything if isinstance(one, Tensor)}

    def changed_since(self, before: Settings, at_a_glance: bool = False) -> list[Key]:
        """What is another, or new, in the order it stands there; of others only tensors tell that
        they have been written to.

        Args:
            at_a_glance: without a look into tensors, which waits for their device: they have
                changed if they have been written to.
        """
        if not at_a_glance:
            traces = chain(self.traces.values(), before.traces.values())
            Digest.read(digest for one in traces for digest in one.digests)
        found = {
            key
            for key, one in self.traces.items()
            if key not in before.traces or not one.is_of_the_same_as(before.traces[key])
        }
        found |= {key for key, one in self.others.items() if before.others.get(key) is not one}
        looked_at = {} if at_a_glance else self.small
        found |= {
            key
            for key, number in self._versions.items()
            if key not in looked_at and before._versions.get(key) != number
        }
        return [key for key in (*self.small, *self.others) if key in found]


def _say_nothing(data_set: Any, name: str) -> None:
    """For loaders whose numbers nobody need know."""


class ReadChanges:
    """What the reading of samples changes by itself, such as a count or a file that is opened."""

    def __init__(self, tell_of_number: Callable[[Any, str], None] = _say_nothing) -> None:
        """`tell_of_number` is called with a data set and the path of a number in it that changes
        with more than the first batch."""
        self.keys: set[Key] = set()
        self._num_looked_at = 0
        self._tell_of_number = tell_of_number

    def watch(self, batches: Iterator[Any], data_set: Any) -> Iterator[Any]:
        """The same batches; the first ones of all that are watched are looked at."""
        return batches if self._num_looked_at >= _LOOKED_AT else self._look(batches, data_set)

    def _look(self, batches: Iterator[Any], data_set: Any) -> Iterator[Any]:
        while self._num_looked_at < _LOOKED_AT:
            before = Settings(data_set)
            read = list(islice(batches, 1))
            if not read:
                return
            now = Settings(data_set)
            changed = now.changed_since(before, at_a_glance=True)
            numbers = [key for key in changed if type(now.small.get(key)) in (int, float)]
            if numbers and self._num_looked_at > 0:
                self._tell_of_number(data_set, joined(*numbers[0]))
            self.keys.update(changed)
            self._num_looked_at += 1
            yield from read
        yield from batches


def owners_of(source: Any, depth: int = _DEPTH) -> Iterator[tuple[str, Any]]:
    """The objects that something is made of, by path; none that has a state.

    Args:
        depth: how many of them may be in one another.
    """
    yield from _owners(source, "", depth, ())


def joined(*names: str) -> str:
    """A path of those that are not empty."""
    return ".".join(name for name in names if name)


def _owners(
    source: Any, where: str, depth: int, inside: tuple[int, ...]
) -> Iterator[tuple[str, Any]]:
    if type(source) in PLAIN or id(source) in inside or len(inside) > _LEVELS:
        return
    inside = (*inside, id(source))
    parts: dict[Any, Any] = {}
    if isinstance(source, (list, tuple)) and len(source) <= _SHORT:
        parts = dict(enumerate(source))
    elif isinstance(source, dict) and len(source) <= _SHORT:
        parts = source
    elif depth > 0 and _is_open(source):
        parts, depth = vars(source), depth - 1
        yield where, source
    for name, part in list(parts.items()):
        yield from _owners(part, joined(where, str(name)), depth, inside)


def _is_open(source: Any) -> bool:
    """Whether attributes of it may be settings: it is no data, and no part of the run."""
    if isinstance(source, (*CONTAINERS, type, nn.Module, Tensor, np.ndarray)) or has_state(source):
        return False
    kind = type(source)
    package, _, rest = kind.__module__.partition(".")
    is_of_the_run = package == "hookexp" and not rest.startswith("data.")
    return kind.__dictoffset__ != 0 and not is_of_the_run and package not in _OF_PYTHON


def _is_small(value: Any) -> bool:
    if type(value) in PLAIN or isinstance(value, Synchronized):
        return True
    if isinstance(value, (Tensor, np.ndarray)):
        size = value.numel() if isinstance(value, Tensor) else value.size
        return size <= _SMALL and can_be_held(value)
    if not isinstance(value, CONTAINERS) or len(value) > _SHORT or not can_be_held(value):
        return False
    return all(map(_is_small, value.values() if isinstance(value, dict) else value))

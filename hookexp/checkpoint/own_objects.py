"""Objects of somebody's own that have more than values: an environment, an agent, an average.

Such an object has a model, a generator or a function beside what it counts. It cannot be held as a
whole, so each of its attributes is held as one of the task would be. One with something else in it,
such as a lock or an open file, is not looked into.
"""

from __future__ import annotations

import logging
import re
from collections import deque
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any
from weakref import ProxyTypes, ref

import numpy as np
from torch import nn

from hookexp.checkpoint.attributes import attributes_of
from hookexp.checkpoint.plain_form import (
    CONTAINERS,
    DEEPEST,
    PLAIN,
    can_be_held,
    has_state,
    is_long,
    is_of_values,
    may_be_looked_into,
)
from hookexp.checkpoint.trace import moves_on
from hookexp.seed import GENERATORS

_FUNCTIONS = (FunctionType, BuiltinFunctionType, MethodType)
_CONSTANTS = (type, ModuleType, PurePath, re.Pattern, np.ufunc, np.dtype, partial)
_OF_OTHERS = (logging.Logger, ref, *ProxyTypes)
_OF_THE_RUN = frozenset(("hookexp", "torch"))
_KNOWN = (*GENERATORS, *_FUNCTIONS, *_CONSTANTS, *_OF_OTHERS)
_MOST = 4096
"""Objects and lists that are looked through, such as the nodes of a tree."""


def objects_in(owners: Iterable[tuple[str, Any]]) -> Iterator[tuple[str, Any]]:
    """By path, such as `task.envs.0`, those in the attributes of owners and of each other."""
    found = {id(owner): owner for _, owner in owners}
    waiting = deque((path, owner, False) for path, owner in owners)
    while waiting:
        path, owner, is_known = waiting.popleft()
        for name, value in _items_of(owner):
            if type(value) in PLAIN or id(value) in found or is_long(value):
                continue
            where = f"{path}.{name}"
            if isinstance(value, (dict, list, tuple)):
                found[id(value)] = value
                waiting.append((where, value, is_known))
            elif _has_more_than_values(value) and (is_known or _has_nothing_unknown(value)):
                found[id(value)] = value
                waiting.append((where, value, True))
                yield where, value


def _items_of(owner: Any) -> Iterable[tuple[Any, Any]]:
    if isinstance(owner, dict):
        return owner.items()
    return enumerate(owner) if isinstance(owner, CONTAINERS) else attributes_of(owner).items()


def _has_more_than_values(value: Any) -> bool:
    kind: Any = type(value)
    return may_be_looked_into(kind) and not has_state(value) and not is_of_values(value)


def _package(kind: Any) -> str:
    return str(kind.__module__).partition(".")[0]


def _has_nothing_unknown(value: Any) -> bool:
    """Whether all that it leads to is of a kind that may be held or never changes, and not much."""
    seen, waiting = {id(value): value}, deque([(value, 0)])
    while waiting:
        owner, levels = waiting.popleft()
        for _, item in _items_of(owner):
            if type(item) in PLAIN or id(item) in seen or isinstance(item, _KNOWN) or is_long(item):
                continue
            kind: Any = type(item)
            is_of_the_run = isinstance(item, nn.Module) or _package(kind) in _OF_THE_RUN
            if is_of_the_run or moves_on(item):
                continue
            seen[id(item)] = item
            is_open = may_be_looked_into(kind) and not has_state(item)
            if is_open or isinstance(item, CONTAINERS):
                waiting.append((item, levels + 1))
            elif not can_be_held(item):
                return False
        if len(seen) > _MOST or levels > DEEPEST:
            return False
    return True

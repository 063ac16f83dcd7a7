"""Random number generators that modules of the model, the task and hooks keep as attributes."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hookexp.checkpoint.own_objects import objects_in
from hookexp.checkpoint.plain_form import PLAIN, is_long
from hookexp.checkpoint.unlisted import parts_of
from hookexp.hook_list import HookList
from hookexp.seed import GENERATORS
from hookexp.task import Task

logger = logging.getLogger("hookexp")
_Part = tuple[str, Any]
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Most attributes there are, none of them a generator; a look at each would take a save longer."""


def states_of(parts: Iterable[_Part], task: Task, hooks: HookList) -> dict[str, Any]:
    """Kind and state of each, in plain types.

    Args:
        parts: the model, and what it keeps in plain attributes, by path; what the task and hooks
            keep is looked for.
    """
    return {name: [_kind(g), _state(g)] for name, g in _generators(parts, task, hooks)}


def set_states(
    parts: Iterable[_Part], task: Task, hooks: HookList, states: Mapping[str, Any]
) -> None:
    """Put back what `states_of` returned; of what is no more one line says that it begins anew."""
    generators = dict(_generators(parts, task, hooks))
    for name, (kind, state) in states.items():
        if name in generators and _kind(generators[name]) == kind:
            _set_state(generators[name], state)
        else:
            logger.warning(
                "%s is not the generator that it was in the checkpoint, and begins anew", name
            )


def _generators(parts: Iterable[_Part], task: Task, hooks: HookList) -> Iterator[tuple[str, Any]]:
    owners: list[tuple[str, Any]] = [("task", task)]
    owners += [(f"hooks.{entry.name}", entry.hook) for entry in hooks.entries]
    owners += _with_modules(parts_of(task))
    for path, owner in (*owners, *objects_in(owners), *_with_modules(parts)):
        for name, value in getattr(owner, "__dict__", {}).items():
            if name in _OF_EVERY_MODULE or type(value) in PLAIN:
                continue
            where = f"{path}.{name}"
            if isinstance(value, GENERATORS):
                yield where, value
            elif isinstance(value, (dict, list, tuple)) and not is_long(value):
                items = value.items() if isinstance(value, dict) else enumerate(value)
                yield from ((f"{where}.{k}", g) for k, g in items if isinstance(g, GENERATORS))


def _with_modules(parts: Iterable[_Part]) -> Iterator[tuple[str, Any]]:
    """Parts by path, and the modules that they are made of."""
    for path, part in parts:
        if isinstance(part, nn.Module):
            yield from ((f"{path}.{name}".rstrip("."), m) for name, m in part.named_modules())
        elif not isinstance(part, Tensor):
            yield path, part


def _kind(generator: Any) -> str:
    if isinstance(generator, np.random.Generator):
        return type(generator.bit_generator).__name__
    device = generator.device.type if isinstance(generator, torch.Generator) else "cpu"
    return f"{type(generator).__name__} {device}"


def _state(generator: Any) -> Any:
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    return _plain(generator.get_state(legacy=False))


def _set_state(generator: Any, state: Any) -> None:
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _plain(state: Any) -> Any:
    """With lists of numbers for arrays, which NumPy takes back."""
    if isinstance(state, Mapping):
        return {key: _plain(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, (np.ndarray, np.generic)) else state

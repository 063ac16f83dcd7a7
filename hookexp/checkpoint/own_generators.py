"""Random number generators that modules of the model, the task and hooks keep as attributes."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from hookexp.checkpoint.generator_state import kind_of, set_state, state_of
from hookexp.checkpoint.unlisted import parts_of
from hookexp.hook_list import HookList
from hookexp.seed import GENERATORS
from hookexp.task import Task

logger = logging.getLogger("hookexp")
_Part = tuple[str, nn.Module | Tensor]
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))
"""Most attributes there are, none of them a generator; a look at each would take a save longer."""


def states_of(parts: Iterable[_Part], task: Task, hooks: HookList) -> dict[str, Any]:
    """Kind and state of each, in plain types.

    Args:
        parts: the model and others by path; a task's are its own and those of its modules.
    """
    return {name: [kind_of(g), state_of(g)] for name, g in _generators(parts, task, hooks)}


def set_states(
    parts: Iterable[_Part], task: Task, hooks: HookList, states: Mapping[str, Any]
) -> None:
    """Put back what `states_of` returned; of what is no more one line says that it begins anew."""
    generators = dict(_generators(parts, task, hooks))
    for name, (kind, state) in states.items():
        if name in generators and kind_of(generators[name]) == kind:
            set_state(generators[name], state)
        else:
            logger.warning(
                "%s is not the generator that it was in the checkpoint, and begins anew", name
            )


def _generators(parts: Iterable[_Part], task: Task, hooks: HookList) -> Iterator[tuple[str, Any]]:
    owners: list[tuple[str, Any]] = [("task", task)]
    owners += [(f"hooks.{entry.name}", entry.hook) for entry in hooks.entries]
    for prefix, part in (*parts, *parts_of(task)):
        if isinstance(part, nn.Module):
            owners += [(f"{prefix}.{n}".rstrip("."), m) for n, m in part.named_modules()]
    for path, owner in owners:
        for name, value in getattr(owner, "__dict__", {}).items():
            if name not in _OF_EVERY_MODULE and isinstance(value, GENERATORS):
                yield f"{path}.{name}", value

"""Modules and weights that no module lists: a task's, and those in a model's plain attributes.

A task is no module. A model may keep a teacher in a plain list, so that it is none of its parts.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from hookexp.checkpoint.attributes import attributes_of, modules_in
from hookexp.checkpoint.own_objects import objects_in
from hookexp.checkpoint.plain_form import DEEPEST, PLAIN
from hookexp.task import Task


def parts_of(task: Task) -> Iterator[tuple[str, nn.Module | Tensor]]:
    """By path, such as `task.loss`, or `task.losses.0` where they are in a list, dict or object."""
    of_the_task = [("task", task)]
    for path, owner in (*of_the_task, *objects_in(of_the_task)):
        for name, value in vars(owner).items():
            yield from parts_at(value, f"{path}.{name}")


def parts_in(model: nn.Module) -> Iterator[tuple[str, nn.Module | Tensor]]:
    """By path, such as `model.head.teachers.0`, without what the model itself lists."""
    listed = {id(module) for module in model.modules()}
    listed |= {id(parameter) for parameter in model.parameters()}
    modules = [*modules_in("model", model)]
    for path, owner in (*modules, *objects_in(modules)):
        for name, value in attributes_of(owner).items():
            for found, part in parts_at(value, f"{path}.{name}"):
                if id(part) not in listed:
                    yield found, part


def tensors_in(part: nn.Module | Tensor) -> list[tuple[str, Tensor]]:
    """Weights and buffers of a part, by name; a weight has none."""
    if isinstance(part, Tensor):
        return [("", part)]
    return [*part.named_parameters(), *part.named_buffers()]


def is_weight(value: Any) -> bool:
    """Whether it is a parameter, be it frozen, or a tensor that an optimizer may have as well."""
    is_leaf = isinstance(value, Tensor) and value.requires_grad and value.is_leaf
    return is_leaf or isinstance(value, nn.Parameter)


def parts_at(
    value: Any, path: str, inside: tuple[int, ...] = ()
) -> Iterator[tuple[str, nn.Module | Tensor]]:
    """By path, what a value is or has in its lists and dicts, which it may be `inside` of."""
    if type(value) in PLAIN or id(value) in inside or len(inside) > DEEPEST:
        return  # Of the others one leads back to itself.
    if isinstance(value, nn.Module) or is_weight(value):
        yield path, value
    elif isinstance(value, (dict, list, tuple)):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        if not PLAIN.issuperset(map(type, value.values() if isinstance(value, dict) else value)):
            for key, item in items:
                yield from parts_at(item, f"{path}.{key}", (*inside, id(value)))

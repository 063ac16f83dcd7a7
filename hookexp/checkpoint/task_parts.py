"""The modules and parameters of a task, which is no module itself and cannot list them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from hookexp.task import Task


def parts_of(task: Task) -> Iterator[tuple[str, nn.Module | Tensor]]:
    """By path, such as `task.loss` or `task.losses.0`, where they are in a list or dict."""
    for name, value in vars(task).items():
        yield from _parts(value, f"task.{name}")


def is_learned(value: Any) -> bool:
    """Whether it is a parameter, be it frozen, or a tensor that an optimizer may have as well."""
    is_leaf = isinstance(value, Tensor) and value.requires_grad and value.is_leaf
    return is_leaf or isinstance(value, nn.Parameter)


def _parts(
    value: Any, path: str, inside: tuple[int, ...] = ()
) -> Iterator[tuple[str, nn.Module | Tensor]]:
    if id(value) in inside:
        return  # It leads back to itself.
    inside = (*inside, id(value))
    if isinstance(value, nn.Module) or is_learned(value):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _parts(item, f"{path}.{key}", inside)
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _parts(item, f"{path}.{index}", inside)

"""The modules and parameters of a task, which is no module itself and cannot list them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from hookexp.task import Task


def parts_of(task: Task) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    """By path, such as `task.loss` or `task.losses.0`, where they are in a list or dict."""
    for name, value in vars(task).items():
        yield from _parts(value, f"task.{name}")


def _parts(value: Any, path: str) -> Iterator[tuple[str, nn.Module | nn.Parameter]]:
    if isinstance(value, (nn.Module, nn.Parameter)):
        yield path, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield from _parts(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from _parts(item, f"{path}.{index}")

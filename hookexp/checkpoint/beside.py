"""`Beside`: what training changes beside the states of the model, the optimizers and the hooks.

A loss may keep a running centre, a model a buffer that is not persistent, a task a teacher or a
state of its own. Most such tensors are constants, such as masks and class weights, and what those
are the config says: a checkpoint holds the ones that have changed since the run began.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from hookexp import dist
from hookexp.checkpoint.task_parts import parts_of
from hookexp.errors import ConfigError
from hookexp.task import Task

logger = logging.getLogger("hookexp")

_AT_ONCE = 2**16
"""Elements that are looked at together, which bounds the memory that takes."""


class Beside:
    """Made when the task is set up and nothing is loaded yet.

    Args:
        model: its buffers that are not persistent.
        task: its parameters and the tensors of modules, among its attributes and in lists and
            dicts there; and what its `state_dict` returns if it has one, which `load_state_dict`
            takes back.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        self._model = dist.unwrap(model)
        self._task = task
        # By value: torch does not count what is written through `.data`, as teachers often are.
        self._began = {name: _digest(tensor) for name, tensor in self._tensors()}

    def state_dict(self) -> dict[str, Any]:
        changed = {
            name: tensor.detach()
            for name, tensor in self._tensors()
            if name not in self._began or _digest(tensor) != self._began[name]
        }
        own = getattr(self._task, "state_dict", None)
        return {"tensors": changed, "task": None if own is None else own()}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what there still is; of the rest one line says that it begins anew.

        Raises:
            ConfigError: if the task has a state and does not take the one it had.
        """
        tensors = dict(self._tensors())
        for name, saved in state["tensors"].items():
            if name in tensors and tensors[name].shape == saved.shape:
                tensors[name].copy_(saved)
            else:
                logger.warning("%s is not what it was in the checkpoint, and begins anew", name)
        if state["task"] is None or not hasattr(self._task, "load_state_dict"):
            return
        try:
            self._task.load_state_dict(state["task"])
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"task: {type(self._task).__name__} does not take its state from the checkpoint "
                f"({type(error).__name__}: {error})"
            ) from error

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """By name; none that belongs to the model's own state."""
        persistent = self._model.state_dict(keep_vars=True)
        for name, buffer in self._model.named_buffers():
            if name not in persistent:
                yield f"model.{name}", buffer
        if hasattr(self._task, "state_dict"):
            return
        of_the_model = {id(tensor) for tensor in self._model.parameters()}
        of_the_model |= {id(tensor) for tensor in self._model.buffers()}
        for path, part in parts_of(self._task):
            for name, tensor in _tensors_in(part):
                if id(tensor) not in of_the_model:
                    yield f"{path}.{name}".rstrip("."), tensor


def _tensors_in(part: nn.Module | nn.Parameter) -> list[tuple[str, Tensor]]:
    if isinstance(part, nn.Parameter):
        return [("", part)]
    return [*part.named_parameters(), *part.named_buffers()]


@torch.no_grad()
def _digest(tensor: Tensor) -> int | None:
    """A number that another content would not have; None for what has no plain memory."""
    if is_lazy(tensor) or tensor.layout is not torch.strided or tensor.is_quantized:
        return None
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().reshape(-1)
    bits = flat.view(_INTEGERS[flat.element_size()])
    weights = _weights()[: len(bits)].to(bits.device)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for some in torch.split(bits, _AT_ONCE):
        total = 31 * total + (weights[: len(some)] * some).sum()
    return int(total)


_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@cache
def _weights() -> Tensor:
    """Odd numbers of 64 bits, always the same."""
    return torch.randint(-(2**62), 2**62, (_AT_ONCE,), generator=torch.Generator()) * 2 + 1

"""`Beside`: what training changes beside the states of the model, the optimizers and the hooks.

A loss may keep a running centre, a model a buffer that is not persistent, a task a state of its
own. Most such tensors are constants, such as masks and class weights, and what those are the config
says: a checkpoint holds the ones that have changed since the run began.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hookexp import dist
from hookexp.errors import ConfigError
from hookexp.task import Task

logger = logging.getLogger("hookexp")


class Beside:
    """Made when the task is set up and nothing is loaded yet.

    Args:
        model: its buffers that are not persistent.
        task: the tensors of modules among its attributes, and what its `state_dict` returns if it
            has one, which `load_state_dict` takes back.
    """

    def __init__(self, model: nn.Module, task: Task) -> None:
        self._model = dist.unwrap(model)
        self._task = task
        # The tensors too: one that is replaced may get the address of the first.
        self._began = {name: (t, _version(t)) for name, t in self._tensors()}

    def state_dict(self) -> dict[str, Any]:
        changed = {name: t.detach() for name, t in self._tensors() if self._has_changed(name, t)}
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

    def _has_changed(self, name: str, tensor: Tensor) -> bool:
        began, version = self._began.get(name, (None, 0))
        return began is not tensor or _version(tensor) != version

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
        for attribute, module in vars(self._task).items():
            if isinstance(module, nn.Module):
                for name, tensor in (*module.named_parameters(), *module.named_buffers()):
                    if id(tensor) not in of_the_model:
                        yield f"task.{attribute}.{name}", tensor


def _version(tensor: Tensor) -> int:
    """How often it was changed in place; torch does not count that in inference mode."""
    return 0 if tensor.is_inference() else tensor._version

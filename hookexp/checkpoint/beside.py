"""`Beside`: what training changes beside the states of the model, the optimizers and the hooks.

A loss may keep a running centre, a model a buffer that is not persistent, a task a teacher or a
state of its own. Most such tensors are constants, such as masks and class weights, and what those
are the config says: a checkpoint holds the ones that have changed since the run began. `own_values`
has what is kept in plain attributes.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hookexp import dist
from hookexp.checkpoint import rank_buffers
from hookexp.checkpoint.data_settings import DataSettings
from hookexp.checkpoint.digest import digests, version
from hookexp.checkpoint.own_values import OwnValues
from hookexp.checkpoint.unlisted import parts_in, parts_of, tensors_in
from hookexp.data.loader import Loader
from hookexp.errors import ConfigError
from hookexp.task import Task

logger = logging.getLogger("hookexp")


class Beside:
    """Made when the task is set up and nothing is loaded yet.

    Args:
        model: its buffers that are not persistent, and the modules and weights in its modules'
            plain attributes.
        task: its parameters and the tensors of modules, among its attributes and in lists and
            dicts there; and what its `state_dict` returns if it has one, which `load_state_dict`
            takes back.
        optimizers: by name; what those of one's own keep outside of their state.
        loaders: by path; what is set on their data sets.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizers: Iterable[tuple[str, Optimizer]] = (),
        loaders: Mapping[str, Loader] | None = None,
    ) -> None:
        self._model = dist.unwrap(model)
        self._task = task
        self.hidden = [*parts_in(self._model)]
        """What the model has in plain attributes; looked for once, since a save waits for it."""
        weights = [part for _, part in self._parts() if type(part) is Tensor]
        self._weights = {id(weight) for weight in weights}
        """Plain tensors that require grad from the start; a later one is what a step carries on."""
        self.values = OwnValues(model, task, optimizers, self.hidden, weights)
        self.data = DataSettings(loaders or {})
        tensors = dict(self._tensors())
        began = zip(tensors.items(), digests([*tensors.values()]), strict=True)
        self._began = {name: (_form(t), number) for (name, t), number in began}
        """Of those that have not changed: torch's count of changes, the shape and a digest, since
        the count leaves out what is written through `.data`, as teachers often are."""

    def begin(self) -> None:
        """Note what training begins with."""
        self.values.begin()
        self.data.begin()

    def state_dict(self) -> dict[str, Any]:
        """With several ranks: what each has where they differ; the rest as rank 0 has it."""
        tensors = {name: tensor.detach() for name, tensor in self._tensors()}
        self._forget_changed(tensors)
        changed = {name: t for name, t in tensors.items() if name not in self._began}
        own = getattr(self._task, "state_dict", None)
        own_of_ranks = dist.gather((self.values.state_dict(), self.data.state_dict()))
        state: dict[str, Any] = {
            "tensors": changed,
            "values": [values for values, _ in own_of_ranks],
            "data": [data for _, data in own_of_ranks],
            "seen": {what: sorted(map(list, keys)) for what, keys in self.values.seen.items()},
            "task": None if own is None else own(),
        }
        if dist.world_size() > 1:
            state["of_ranks"] = rank_buffers.of_ranks(tensors)
        return state

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what there still is; of the rest one line says that it begins anew.

        Raises:
            ConfigError: if the task has a state and does not take the one it had.
        """
        tensors, of_ranks = dict(self._tensors()), state.get("of_ranks", ())
        ours = of_ranks[dist.rank()] if len(of_ranks) == dist.world_size() else {}
        for name, saved in {**state["tensors"], **ours}.items():
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

    def load_values(self, state: Mapping[str, Any]) -> None:
        """Put back plain attributes, where hooks in `before_train` have set some by now."""
        for what, keys in state.get("seen", {}).items():
            self.values.seen[what] |= {(path, name) for path, name in keys}
        data = state.get("data", ())
        if data:
            self.data.load_state_dict(data[dist.rank() if len(data) == dist.world_size() else 0])
        values = state.get("values", ())  # Older checkpoints have none.
        if len(values) == dist.world_size():
            self.values.load_state_dict(values[dist.rank()])
        elif any(values):
            if dist.rank() == 0:
                logger.warning(
                    "resume: what task and model keep beside the weights is of %d processes and "
                    "this run has %d, so it is that of rank 0",
                    *(len(values), dist.world_size()),
                )
            self.values.load_state_dict(values[0])

    def _forget_changed(self, tensors: Mapping[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if name in self._began and _form(tensor) != self._began[name][0]:
                del self._began[name]
        unsure = [name for name in tensors if name in self._began]
        for name, number in zip(unsure, digests([tensors[n] for n in unsure]), strict=True):
            if number != self._began[name][1]:
                del self._began[name]

    def _tensors(self) -> Iterator[tuple[str, Tensor]]:
        """By name; none that belongs to the model's own state."""
        if buffers := dict(self._model.named_buffers()):
            persistent = self._model.state_dict(keep_vars=True)
            yield from ((f"model.{n}", b) for n, b in buffers.items() if n not in persistent)
        tensors = [
            (path, *named)
            for path, part in self._parts()
            if type(part) is not Tensor or id(part) in self._weights
            for named in tensors_in(part)
        ]
        if not tensors:
            return
        of_the_model = {id(t) for t in (*self._model.parameters(), *buffers.values())}
        for path, name, tensor in tensors:
            if id(tensor) not in of_the_model:
                yield f"{path}.{name}".rstrip("."), tensor

    def _parts(self) -> Iterator[tuple[str, nn.Module | Tensor]]:
        yield from self.hidden
        if not hasattr(self._task, "state_dict"):
            yield from parts_of(self._task)


def _form(tensor: Tensor) -> tuple[int, torch.Size]:
    return version(tensor), tensor.shape

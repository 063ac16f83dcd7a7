"""What the model's modules, the task and optimizers keep as plain attributes.

A recurrent model may keep its hidden state from batch to batch, a task a counter, a running mean, a
memory bank or a best value. A checkpoint holds those that are not what they were when training
began: that the config says, and hooks in their `before_train`. A tensor with a graph is held as its
values, which is all that a next step can go on with; a large one is taken for an output, such as an
attention map. What an evaluation has collected and the next one resets is left out.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hookexp import dist
from hookexp.checkpoint.attributes import (
    ABSENT,
    Began,
    Mark,
    attributes_of,
    mark_of,
    modules_in,
    set_attribute,
)
from hookexp.checkpoint.digest import Digest
from hookexp.checkpoint.host_copy import HostCopy
from hookexp.checkpoint.own_objects import objects_in
from hookexp.checkpoint.plain_form import PLAIN, can_be_held, to_plain
from hookexp.checkpoint.trace import ELSEWHERE, Trace, moves_on, trace
from hookexp.checkpoint.unlisted import parts_of
from hookexp.device import map_tensors
from hookexp.optim.shared_groups import shared_groups
from hookexp.optim.states import config_path
from hookexp.task import Task

logger = logging.getLogger("hookexp")

_LARGE = 2**20
"""Elements with a graph that are more than a hidden state has."""
_NONE = trace(None)


class OwnValues:
    """Of an object that keeps something that cannot be held, a line says that once.

    Nothing of such an object is held: a half of what it keeps may not go with the other half.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        optimizers: Iterable[tuple[str, Optimizer]],
        hidden: Sequence[tuple[str, nn.Module | Tensor]],
        weights: Sequence[Tensor],
    ) -> None:
        self._model = dist.unwrap(model)
        self._task = task
        self._optimizers = {config_path(name): optimizer for name, optimizer in optimizers}
        self._hidden = hidden
        parts = [("model", self._model), *hidden]
        modules = [module for part in parts for module in modules_in(*part)]
        self.objects = [*objects_in(modules)]
        """What modules have in plain attributes; looked for once, since a save waits for it."""
        self._elsewhere = [*self._optimizers.values(), *weights]
        self._began: dict[str, Began] = {}
        """What each owner was when training began, by its path."""
        self._mixed: set[str] = set()
        """Owners that keep something which cannot be held."""
        self._given_up: set[str] = set()
        """What that is; of what is inside of it no more is told."""
        self._told: set[tuple[str, str]] = set()
        """Iterators, by path and name."""
        self._made: dict[tuple[str, str], Trace] = {}
        """What cannot be held and was not there at first, as it was at the last save."""
        self.seen: dict[str, set[tuple[str, str]]] = {"outputs": set(), "reset": set()}
        """By path and name what has held a large tensor with a graph, and what evaluations reset
        when they begin. It shows once there was one, or something to reset, so a resumed run has to
        be told what the run before had seen."""
        self._left: dict[tuple[str, str], Mark] = {}
        """What the last evaluation has left of it."""
        self._before_evaluation: dict[str, Any] | None = None
        self._host_copy = HostCopy()

    def begin(self) -> None:
        """Note what everything is; called when training begins and nothing was put back yet."""
        self._began = {path: Began(owner, self._trace) for path, owner in self._owners()}

    def state_dict(self) -> dict[str, Any]:
        """By owner and attribute, each with whether its tensors are where the model is, and whether
        it is the tensor, list or object that was there when training began, changed in place.

        Of the begin of an evaluation that was given up: a resumed run begins it anew.
        """
        held = self._before_evaluation
        held = self._held() if held is None else held
        # Ranks tell each other what they hold in plain bytes.
        return held if dist.world_size() == 1 else dict(map_tensors(held, Tensor.cpu))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what there still is; of the rest one line says that it begins anew."""
        with ExitStack() as stack:
            for optimizer in self._optimizers.values():
                stack.enter_context(shared_groups(optimizer))
            self._load(state)

    def _load(self, state: Mapping[str, Any]) -> None:
        device, owners = self._device(), dict(self._owners())
        for path, values in state.items():
            if path not in owners:
                logger.warning("%s is not what it was in the checkpoint, and begins anew", path)
                continue
            # Older checkpoints do not say whether it is the same.
            for name, (value, is_with_model, *is_the_same) in values.items():
                to = device if is_with_model else torch.device("cpu")
                there = map_tensors(value, partial(Tensor.to, device=to))
                try:
                    set_attribute(owners[path], name, there, False not in is_the_same)
                # A property now, or a parameter; or what has a state does not take it.
                except (AttributeError, TypeError, LookupError, ValueError, RuntimeError):
                    name = f"{path}.{name}"
                    logger.warning("%s is not what it was in the checkpoint, and begins anew", name)

    def begin_evaluation(self) -> None:
        """Reset the task's metrics."""
        if not self._began:
            self._task.reset_metrics()
            return
        self._before_evaluation = self._host_copy.copy(self._held())
        before = self._marks()
        self._task.reset_metrics()
        self.seen["reset"] |= {
            key for key, mark in self._marks().items() if before.get(key) != mark
        }

    def end_evaluation(self) -> None:
        """Called when it was not given up."""
        self._before_evaluation = None
        self._left = {key: mark for key, mark in self._marks().items() if key in self.seen["reset"]}

    def _held(self) -> dict[str, Any]:
        held: dict[str, Any] = {}
        device = self._device()
        for path, name, value, was, now in self._changed():
            key = path, name
            if moves_on(value):
                self._tell_of_iterator(key, value)
            elif not can_be_held(value):
                if was not in (ABSENT, _NONE) or self._is_made_again(key, now):
                    self._give_up(path, name, value)
            elif not self._is_output(key, value) and not self._is_left(key, value):
                plain = to_plain(value)
                is_the_same = self._began[path].is_the_same(name, value)
                held.setdefault(path, {})[name] = [plain, _is_on(device, plain), is_the_same]
        return {p: dict(sorted(held[p].items())) for p in held if p not in self._mixed}

    def _changed(self) -> list[tuple[str, str, Any, Trace, Trace]]:
        """Path, name and value of what is another than when training began, and traces of both."""
        found = []
        for path, owner in self._owners():
            if path not in self._began:  # Made in training, and as it should be at first.
                self._began[path] = Began(owner, self._trace)
            found += [(path, *change) for change in self._began[path].changes(owner)]
        Digest.read(d for *_, was, now in found for d in (*was.digests, *now.digests))
        return [one for one in found if not one[-1].is_of_the_same_as(one[-2])]

    def _is_made_again(self, key: tuple[str, str], now: Trace) -> bool:
        """Whether what was not there at first is no cache, which is made once."""
        before, self._made[key] = self._made.get(key, now), now
        return not now.is_of_the_same_as(before)

    def _is_output(self, key: tuple[str, str], value: Any) -> bool:
        if key not in self.seen["outputs"] and _num_with_graph(value) > _LARGE:
            self.seen["outputs"].add(key)
            if dist.rank() == 0:
                logger.warning(
                    "%s.%s is taken for an output of its step and is in no checkpoint, since it is "
                    "large and has a graph; if the next step reads it, keep it detached",
                    *key,
                )
        return key in self.seen["outputs"]

    def _is_left(self, key: tuple[str, str], value: Any) -> bool:
        """Whether an evaluation has collected it. Of numbers it may be what training goes by."""
        return type(value) not in PLAIN and self._left.get(key) == mark_of(value)

    def _tell_of_iterator(self, key: tuple[str, str], value: Any) -> None:
        if key not in self._told and dist.rank() == 0:
            logger.warning(
                "%s.%s (%s) is an iterator, and where it stands is in no checkpoint, so a run that "
                "is resumed begins it anew; for batches keep hookexp.EndlessBatches(DATALOADER) "
                "there, for a count a number",
                *(*key, type(value).__name__),
            )
        self._told.add(key)

    def _give_up(self, path: str, name: str, value: Any) -> None:
        is_told = path in self._mixed or any(f"{path}.".startswith(f"{n}.") for n in self._given_up)
        if not is_told and dist.rank() == 0:
            logger.warning(
                "%s.%s (%s) changes in training and is in no checkpoint: a run that is resumed is "
                "exact only if nothing depends on what it, or another attribute there, was before; "
                "keep numbers, lists, arrays and tensors, or give it a state_dict and "
                "load_state_dict",
                *(path, name, type(value).__name__),
            )
        self._mixed.add(path)
        self._given_up.add(f"{path}.{name}")

    def _trace(self, value: Any) -> Trace:
        is_elsewhere = any(value is one for one in self._elsewhere)
        return ELSEWHERE if is_elsewhere else trace(value, self._elsewhere)

    def _device(self) -> torch.device:
        parameter = next(self._model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def _marks(self) -> dict[tuple[str, str], Mark]:
        """Of what the task has, its metrics among it."""
        return {
            (path, name): mark_of(value)
            for path, owner in self._of_the_task()
            for name, value in attributes_of(owner).items()
        }

    def _owners(self) -> Iterator[tuple[str, Any]]:
        yield from self._of_the_task()
        yield from modules_in("model", self._model)
        for path, part in self._hidden:
            yield from modules_in(path, part)
        yield from self.objects
        yield from self._optimizers.items()

    def _of_the_task(self) -> Iterator[tuple[str, Any]]:
        if not hasattr(self._task, "state_dict"):
            yield "task", self._task
            yield from objects_in([("task", self._task)])
            for path, part in parts_of(self._task):
                yield from modules_in(path, part)


def _num_with_graph(value: Any) -> int:
    numbers = []

    def look(tensor: Tensor) -> Tensor:
        numbers.append(tensor.numel() if tensor.grad_fn is not None else 0)
        return tensor

    map_tensors(value, look)
    return sum(numbers)


def _is_on(device: torch.device, value: Any) -> bool:
    places = set()

    def look(tensor: Tensor) -> Tensor:
        places.add(tensor.device)
        return tensor

    map_tensors(value, look)
    return places == {device}

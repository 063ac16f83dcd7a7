"""Numbers and tensors that the model's modules, the task and optimizers keep as plain attributes.

A recurrent model may keep its hidden state from batch to batch, a task a counter, a running mean or
a memory bank. Which attributes those are shows when they change: the first steps of a process are
looked at, before and after. What an evaluation alone changes, such as a list of predictions, and
what hooks set is no part of it. A tensor with a graph is taken for an output, which the next step
makes anew: a hidden state has to be detached when it is kept, not when it is used. An optimizer of
one's own may count its steps in itself; nobody else changes that, so what it is at a save says
enough.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from hookexp import dist
from hookexp.checkpoint.digest import Digest
from hookexp.checkpoint.task_parts import parts_of
from hookexp.checkpoint.trace import Trace, can_be_held, trace
from hookexp.device import map_tensors
from hookexp.task import Task

logger = logging.getLogger("hookexp")

_Step = Callable[[nn.Module, Any], dict[str, Any]]
_Optimizers = Iterable[tuple[str, Optimizer]]
_Traces = Mapping[str, Mapping[str, Trace | None]]
"""By the path of an owner and the name of an attribute."""
_LOOKS = 8
_OF_EVERY_MODULE = frozenset(vars(nn.Module()))


@dataclass
class _Look:
    """What of two moments is not the same."""

    is_first: bool
    changed: dict[str, set[str]] = field(default_factory=dict)
    """Names by the path of their owner."""
    unsure: list[tuple[str, str, Digest, Digest]] = field(default_factory=list)
    """Path, name, and the digests of a tensor then and now."""


class OwnValues:
    """Of an object that keeps something else too, such as a NumPy array, a line says that once.

    Nothing of such an object is held: a half of what it keeps may not go with the other half.
    """

    def __init__(self, model: nn.Module, task: Task, optimizers: _Optimizers) -> None:
        self._model = dist.unwrap(model)
        self._task = task
        self._optimizers = {
            "optimizer" if name == "default" else f"optimizer.{name}": optimizer
            for name, optimizer in optimizers
        }
        self._began = self._look_at(self._optimizers.items())
        self._changing: dict[str, set[str]] = {}
        """Attributes that steps have changed, by the path of their owner."""
        self._mixed: set[str] = set()
        """Owners that keep something which cannot be held."""
        self._num_looks = 0
        self._looks: list[_Look] = []
        """Those that are still to be made something of, when the host may wait: at a save."""

    def watched(self, train_step: _Step) -> _Step:
        """A train_step that is looked at in its first calls."""

        def step(model: nn.Module, batch: Any) -> dict[str, Any]:
            if self._num_looks == _LOOKS or _is_being_captured():
                return train_step(model, batch)
            before = self._look_at(self._parts())
            outputs = train_step(model, batch)
            self._compare(before, self._look_at(self._parts()))
            self._num_looks += 1
            return outputs

        return step

    def state_dict(self) -> dict[str, Any]:
        """By owner and attribute, each with whether its tensors are where the model is."""
        self._compare(self._began, self._look_at(self._optimizers.items()))
        self._read_looks()
        held: dict[str, Any] = {}
        device, owners = self._device(), self._owners() if self._changing else {}
        for path, names in self._changing.items():
            values = {n: v for n, v in _attributes(owners.get(path)).items() if n in names}
            can_be = {n: v for n, v in sorted(values.items()) if can_be_held(v)}
            if path not in self._mixed:
                held[path] = {n: [v, _is_on(device, v)] for n, v in can_be.items()}
        # Ranks tell each other what they hold in plain bytes.
        return held if dist.world_size() == 1 else dict(map_tensors(held, Tensor.cpu))

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what there still is; of the rest one line says that it begins anew."""
        device, owners = self._device(), self._owners()
        for path, values in state.items():
            if path not in owners:
                logger.warning("%s is not what it was in the checkpoint, and begins anew", path)
                continue
            self._changing.setdefault(path, set()).update(values)
            for name, (value, is_with_model) in values.items():
                to = device if is_with_model else torch.device("cpu")
                try:
                    _set(owners[path], name, map_tensors(value, partial(Tensor.to, device=to)))
                except (AttributeError, TypeError, KeyError):  # A property now, or a parameter.
                    name = f"{path}.{name}"
                    logger.warning("%s is not what it was in the checkpoint, and begins anew", name)

    def _device(self) -> torch.device:
        parameter = next(self._model.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def _look_at(self, owners: Iterable[tuple[str, Any]]) -> _Traces:
        elsewhere = [*self._optimizers.values()]
        return {
            path: {
                name: trace(value, elsewhere)
                for name, value in _attributes(owner).items()
                if all(value is not one for one in elsewhere)
            }
            for path, owner in owners
        }

    def _compare(self, before: _Traces, after: _Traces) -> None:
        look = _Look(is_first=self._num_looks == 0)
        for path, traces in after.items():
            were = before.get(path, {})
            for name, now in traces.items():
                was = were.get(name)
                if now is None:
                    continue
                if was is None or was.form != now.form:
                    look.changed.setdefault(path, set()).add(name)
                else:
                    pairs = zip(was.digests, now.digests, strict=True)
                    look.unsure += [(path, name, *pair) for pair in pairs]
        self._looks.append(look)

    def _read_looks(self) -> None:
        looks, self._looks = self._looks, []
        Digest.read(d for look in looks for _, _, *pair in look.unsure for d in pair)
        for look in looks:
            for path, name, was, now in look.unsure:
                if was.number != now.number:
                    look.changed.setdefault(path, set()).add(name)
        owners = self._owners() if any(look.changed for look in looks) else {}
        for look in looks:
            for path, changed in look.changed.items():
                values = _attributes(owners.get(path))
                lost = [n for n in sorted(changed) if n in values and not can_be_held(values[n])]
                if lost and not look.is_first:
                    self._give_up(path, lost[0], values[lost[0]])
                elif not lost:  # A first step makes caches, as does the first of a resume.
                    self._changing.setdefault(path, set()).update(changed)

    def _give_up(self, path: str, name: str, value: Any) -> None:
        if path not in self._mixed and dist.rank() == 0:
            logger.warning(
                "%s.%s (%s) changes in training and is in no checkpoint: a run that is resumed is "
                "exact only if nothing depends on what it, or another attribute there, was before; "
                "keep numbers, lists and tensors, or have it in a state_dict of its own",
                *(path, name, type(value).__name__),
            )
        self._mixed.add(path)

    def _owners(self) -> dict[str, Any]:
        return {**dict(self._parts()), **self._optimizers}

    def _parts(self) -> Iterator[tuple[str, Any]]:
        parts: list[tuple[str, Any]] = [("model", self._model)]
        if not hasattr(self._task, "state_dict"):
            yield "task", self._task
            parts += parts_of(self._task)
        for prefix, part in parts:
            if isinstance(part, nn.Module):
                for name, module in part.named_modules():
                    has_own_state = type(module).get_extra_state is not nn.Module.get_extra_state
                    if not has_own_state and not isinstance(module, DistributedDataParallel):
                        yield f"{prefix}.{name}".rstrip("."), module


def _attributes(owner: Any) -> dict[str, Any]:
    hidden: Collection[str] = ()
    if isinstance(owner, nn.Module):
        hidden = _OF_EVERY_MODULE
    elif isinstance(owner, Optimizer):
        hidden = _of_every_optimizer()
    return {
        name: value for name, value in getattr(owner, "__dict__", {}).items() if name not in hidden
    }


@cache
def _of_every_optimizer() -> frozenset[str]:
    return frozenset(vars(Optimizer([torch.zeros(1)], {})))


def _is_being_captured() -> bool:
    """While a CUDA graph is captured, no value can be looked at."""
    if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        return False
    return torch.cuda.is_current_stream_capturing()


def _is_on(device: torch.device, value: Any) -> bool:
    places = set()

    def look(tensor: Tensor) -> Tensor:
        places.add(tensor.device)
        return tensor

    map_tensors(value, look)
    return places == {device}


def _set(owner: Any, name: str, value: Any) -> None:
    """A tensor in place where it fits: others may have it too."""
    held = getattr(owner, name, None)
    if isinstance(held, Tensor) and isinstance(value, Tensor) and _fits(held, value):
        with torch.no_grad():
            held.copy_(value)
    else:
        setattr(owner, name, value)


def _fits(one: Tensor, two: Tensor) -> bool:
    return (one.shape, one.dtype, one.device) == (two.shape, two.dtype, two.device)

"""`BatchStream`: an object that yields ready batches, such as a DataLoader of the user's own.

How a resumed run gets to its batch in the middle of a pass over them:

    there is a state     `state_dict` and `load_state_dict` of the object, of a DataLoader's
                         iterable data set, or of its sampler; no batch is read again
    there is none        the generators go back to where the pass began, and the batches before
                         are read and dropped

A state is asked for after each batch and kept with it, since loaders read ahead of the training.
"""

from __future__ import annotations

import copy
import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import chain, islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch.utils.data import DataLoader, IterableDataset, Sampler

from hookexp.data import workers
from hookexp.seed import rng_state, set_rng_state

logger = logging.getLogger("hookexp")
_READ_AHEAD = 4
"""More batches than may lie between the one that was read last and the one trained on last."""


@runtime_checkable
class Stateful(Protocol):
    """Says where it stands, in plain types, and goes on there when it is iterated next.

    `state_dict` is called after each batch, so what it returns should be small. It says what was
    handed out, the last item included; after the last one of a pass, what is left of it is empty.
    """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


@dataclass(frozen=True)
class _Pass:
    """One pass over the batches, from its begin or from where a run was continued."""

    first: int
    """The number its first batch has in the stream, or would have."""
    began_at: int
    """The number of the first one that was read."""
    generators: dict[str, Any]
    """The states of generators when it began."""


class BatchStream:
    """Ready batches from any one on. An endless stream starts over.

    Args:
        batches: what is iterated over, once for each epoch.
        limit: the most batches of an epoch; None for all.
    """

    def __init__(
        self, batches: Iterable[Any], endless: bool = False, limit: int | None = None
    ) -> None:
        self.batches = batches
        self.endless = endless
        self.limit = limit
        self.dataset = getattr(batches, "dataset", batches)
        self.sampler = getattr(batches, "sampler", None)
        self.batch_sampler = getattr(batches, "batch_sampler", None)
        self.batch_size = getattr(batches, "batch_size", None)
        self._source, self._stateful = _tracked(batches)
        self._generators = _generators_of(batches)
        self._passes: deque[_Pass] = deque(maxlen=_READ_AHEAD)
        self._states: deque[tuple[int, dict[str, Any] | None]] = deque(maxlen=_READ_AHEAD)
        """What a stateful source said after the last batches, by the number of the next one."""
        self._to_resume: dict[str, Any] | None = None

    def __len__(self) -> int:
        if not isinstance(self.batches, Sized):
            raise TypeError(f"{type(self.batches).__name__} has no length")
        return len(self.batches) if self.limit is None else min(len(self.batches), self.limit)

    def __iter__(self) -> Iterator[Any]:
        return self.iterate(0)

    def iterate(self, start: int) -> Iterator[Any]:
        """The batches from number `start` on."""
        state, self._to_resume = self._to_resume, None
        if start > 0 and state is None:
            state = _begin_and_drop(start)
        return self._all(start, state)

    @property
    def has_workers(self) -> bool:
        """Whether a DataLoader reads it in other processes, which have copies of the data set."""
        return isinstance(self.batches, DataLoader) and self.batches.num_workers > 0

    @property
    def may_be_read_ahead(self) -> bool:
        """Whether what it draws at random is apart from what training draws: it has workers.

        Else a batch that is read before the one in training has moved the generators that a
        checkpoint of that moment holds.
        """
        return self.has_workers

    def state_dict(self, number: int) -> dict[str, Any]:
        """What `iterate(number)` of a later process needs; 0 is the begin of the next pass.

        Only of a batch that was read a moment ago.
        """
        if self._to_resume is not None:
            return self._to_resume
        if number == 0:
            source = None if self._stateful is None else copy.deepcopy(self._stateful.state_dict())
            return {"in_pass": 0, "source": source, "generators": {"own": self._own_states()}}
        for one in reversed(self._passes):
            # A batch at the border of two passes is the last of the first one.
            # Without a source's state, the next one, begun ahead, has drawn from the generators.
            counts_from_its_begin = one.first < number or self._stateful is None
            if one.began_at < number or (one.began_at == number and counts_from_its_begin):
                return {
                    "in_pass": number - one.first,
                    "source": dict(self._states).get(number),
                    "generators": one.generators,
                }
        return _begin_and_drop(number)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next `iterate` begin where the state was asked for."""
        if state["in_pass"] > 0 or "global" in state["generators"]:
            self._to_resume = state
        else:
            self._put_back(state)

    def close(self) -> None:
        """End the workers that a DataLoader keeps from pass to pass."""
        if isinstance(self._source, DataLoader):
            iterator, self._source._iterator = self._source._iterator, None
            workers.end(iterator)

    def doubts(self) -> str:
        """Why a run that is resumed in the middle of a pass may not be exact; empty if it is."""
        name = type(self.batches).__name__
        if isinstance(self.batches, DataLoader):
            return _doubts_about(self.batches, self._stateful is not None)
        if self._stateful is not None or isinstance(self.batches, (list, tuple)):
            return ""
        return (
            f"{name} has no state_dict and load_state_dict: a run that is resumed reads and drops "
            "the batches before, and is exact only if it gives the same ones again"
        )

    def _all(self, number: int, state: dict[str, Any] | None) -> Iterator[Any]:
        is_stateful = self._stateful is not None
        while True:
            in_pass = 0
            if state is None:
                generators = {}
                if not is_stateful:
                    generators = {"global": rng_state(), "own": self._own_states()}
                batches = _begin(self._source)
            else:
                in_pass, generators = state["in_pass"], state["generators"]
                self._states.append((number, state["source"]))
                batches = self._resumed(state)
            was_resumed, state = state is not None, None
            began_at = number
            self._passes.append(_Pass(number - in_pass, began_at, generators))
            for batch in _limited(batches, self.limit, in_pass):
                number += 1
                if is_stateful:
                    self._states.append((number, self._state()))
                yield batch
            is_dry = number == began_at and not was_resumed
            if not self.endless or is_dry:
                return

    def _resumed(self, state: dict[str, Any]) -> Iterator[Any]:
        """An iterator that stands where a state was asked for.

        Making one draws from the global generators (a DataLoader draws a seed for its workers),
        which the run that was not stopped did at the begin of the pass.
        """
        generators = rng_state()
        self._put_back(state)
        batches = _begin(self._source)
        if state["in_pass"] == 0:
            # A sampler draws when it is asked for the first one.
            batches = chain(list(islice(batches, 1)), batches)
        elif state["source"] is None:
            logger.info(
                "data.train: %d batches are read and dropped to continue after them",
                state["in_pass"],
            )
            for _ in islice(batches, state["in_pass"]):
                pass
        set_rng_state(generators)
        return batches

    def _put_back(self, state: dict[str, Any]) -> None:
        if state["source"] is not None and self._stateful is not None:
            self._stateful.load_state_dict(copy.deepcopy(state["source"]))
        if "global" in state["generators"]:
            set_rng_state(state["generators"]["global"])
        for generator, saved in zip(
            self._generators, state["generators"].get("own", ()), strict=False
        ):
            generator.set_state(saved)

    def _state(self) -> dict[str, Any]:
        """Of a stateful source, after the batch that it gave last."""
        assert self._stateful is not None
        if isinstance(self._stateful, _TrackedSampler):
            return self._stateful.states.popleft()
        return copy.deepcopy(self._stateful.state_dict())

    def _own_states(self) -> list[torch.Tensor]:
        return [generator.get_state() for generator in self._generators]


class _TrackedSampler(Sampler[Any]):
    """A sampler whose state after each item waits until that item's batch is handed out."""

    def __init__(self, sampler: Any, stateful: Stateful) -> None:
        self.sampler = sampler
        self.stateful = stateful
        self.states: deque[dict[str, Any]] = deque()

    def __len__(self) -> int:
        return len(self.sampler)

    def __iter__(self) -> Iterator[Any]:
        self.states.clear()
        for item in self.sampler:
            self.states.append(copy.deepcopy(self.stateful.state_dict()))
            yield item

    def state_dict(self) -> dict[str, Any]:
        return self.stateful.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.stateful.load_state_dict(state)


def _tracked(batches: Iterable[Any]) -> tuple[Iterable[Any], Stateful | None]:
    """What to iterate over in place of `batches`, and what knows where that stands."""
    if isinstance(batches, Stateful):
        return batches, batches
    if not isinstance(batches, DataLoader):
        return batches, None
    if isinstance(batches.dataset, IterableDataset):
        # Each worker has a copy of the data set, and the state is in the copies.
        if isinstance(batches.dataset, Stateful) and batches.num_workers == 0:
            return batches, batches.dataset
        return batches, None
    which = "sampler" if batches.batch_sampler is None else "batch_sampler"
    for sampler in (batches.batch_sampler, batches.sampler):
        if isinstance(sampler, Stateful):
            tracked = _TrackedSampler(getattr(batches, which), sampler)
            mine = copy.copy(batches)
            vars(mine).update({which: tracked, "_iterator": None})
            return mine, tracked
    return batches, None


def _generators_of(batches: Iterable[Any]) -> list[torch.Generator]:
    """The generators that a DataLoader and its sampler draw from, where they have their own."""
    sampler = getattr(batches, "sampler", None)
    found = [getattr(owner, "generator", None) for owner in (batches, sampler)]
    own = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(own.values())


def _doubts_about(loader: DataLoader[Any], is_stateful: bool) -> str:
    kind = type(loader.dataset).__name__
    if isinstance(loader.dataset, IterableDataset):
        if is_stateful:
            return ""
        if isinstance(loader.dataset, Stateful):
            return (
                f"the state of {kind} is in the {loader.num_workers} workers' copies and cannot be "
                "saved: a run that is resumed reads and drops the batches before, and is exact "
                "only if it gives the same ones again; data.num_workers=0 resumes exactly"
            )
        return (
            f"{kind} has no state_dict and load_state_dict: a run that is resumed reads and drops "
            "the batches before, and is exact only if it gives the same ones again"
        )
    if is_stateful:
        if loader.num_workers == 0:
            return ""
        return (
            "the samples continue exactly after a resume, but what the DataLoader's "
            f"{loader.num_workers} workers draw at random begins anew; give the data set itself as "
            "data.train and its loader is made with a seed for each sample"
        )
    foreign = [
        type(sampler).__name__
        for sampler in (loader.sampler, loader.batch_sampler)
        if sampler is not None and not type(sampler).__module__.startswith("torch.")
    ]
    if not foreign:
        return ""
    return (
        f"{foreign[0]} has no state_dict and load_state_dict: a run that is resumed reads and "
        "drops the batches before, and is exact only if it gives the same ones again"
    )


def _begin(batches: Iterable[Any]) -> Iterator[Any]:
    return workers.iterate(batches) if isinstance(batches, DataLoader) else iter(batches)


def _begin_and_drop(number: int) -> dict[str, Any]:
    """All that can be said without a state: so many batches come before."""
    return {"in_pass": number, "source": None, "generators": {}}


def _limited(batches: Iterator[Any], limit: int | None, in_pass: int) -> Iterator[Any]:
    return batches if limit is None else islice(batches, max(limit - in_pass, 0))

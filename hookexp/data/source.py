"""`Source`: what a stream of ready batches is read from, and how it is put back to where it stood.

It is any object that can be iterated again and again, such as a DataLoader of the user's own. What
it, or a part of it, says of where it stands is asked for after each batch; see `tracking`.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain, islice
from typing import Any

import torch
from torch.utils.data import DataLoader

from hookexp.data import workers
from hookexp.data.doubts import doubts_about
from hookexp.data.tracking import (
    Position,
    Stateful,
    copy_of,
    generators_of,
    samplers_of,
    tracked,
)
from hookexp.seed import rng_state, set_rng_state

logger = logging.getLogger("hookexp")


class Source:
    """An object of ready batches, its samplers and its generators."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self.batches = batches
        self.generators = generators_of(batches)
        self._batches, self._tracker = tracked(batches)
        if self._tracker is not None:
            self._tracker.generators = self.generators

    @property
    def is_stateful(self) -> bool:
        """Whether it says where it stands."""
        return self._tracker is not None

    @property
    def name_of_stateful(self) -> str:
        """The class of the object that says so."""
        assert self._tracker is not None
        return type(self._tracker.stateful).__name__

    @property
    def has_workers(self) -> bool:
        """Whether a DataLoader reads it in other processes, which have copies of the data set."""
        return isinstance(self.batches, DataLoader) and self.batches.num_workers > 0

    def position(self) -> Position | None:
        """Where it stands after the batch that it gave last; once for each. None if unknown."""
        return None if self._tracker is None else self._tracker.position()

    def state(self) -> dict[str, Any]:
        """What it says of itself now."""
        assert self._tracker is not None
        return self._tracker.state()

    def generator_states(self) -> list[torch.Tensor]:
        """Of the generators that are its own."""
        return [generator.get_state() for generator in self.generators]

    def set_generators(self, states: Iterable[torch.Tensor]) -> None:
        """Put back what `generator_states` returned."""
        for generator, saved in zip(self.generators, states, strict=False):
            generator.set_state(saved)

    def load(self, state: dict[str, Any] | None) -> None:
        """Let it stand where it said; None for one that says nothing."""
        if state is not None and self._tracker is not None:
            self._tracker.stateful.load_state_dict(copy.deepcopy(state))

    def begin(self) -> Iterator[Any]:
        """What `iter()` of it gives."""
        if not isinstance(self._batches, DataLoader):
            return iter(self._batches)
        if not isinstance(self._batches, Stateful):
            # Workers that are kept draw no new seed. A resumed run has to start some, and draws
            # one: so does each pass, for what it costs to start workers.
            self.close()
        return workers.iterate(self._batches)

    def continued(
        self, position: Position, in_pass: int, generators: dict[str, Any]
    ) -> Iterator[Any]:
        """The rest of a pass, from after its batch number `in_pass` on.

        Beginning one draws from the global generators (a DataLoader draws a seed for its workers),
        which the run that was not stopped did at the begin of the pass.

        Args:
            generators: as they were at the begin of the pass.
        """
        now = rng_state()
        if "global" in generators:
            set_rng_state(generators["global"])
        self.set_generators(generators.get("own", ()))
        self.load(position.source)
        batches = self.begin()
        if self._tracker is not None:
            self._tracker.resume(position.own)
        if in_pass == 0:
            # A sampler draws when it is asked for the first one.
            batches = chain(list(islice(batches, 1)), batches)
        elif position.source is None:
            logger.info("data: %d batches are read and dropped to continue after them", in_pass)
        self._drop(batches, position.again)
        set_rng_state(now)
        return batches

    def after(self, end: Position) -> Iterator[Any]:
        """The pass that it had gone over to when it was asked where another one had ended."""
        self.load(end.source)
        batches = self.begin()
        self._drop(batches, end.again)
        return batches

    def has_gone_over(self, end: Position) -> bool:
        """Put it to the end of a pass; whether what it gives then is the next pass.

        It is what it gives that had begun the next one when it was asked.
        """
        now, own = rng_state(), self.generator_states()
        self.load(end.source)
        ahead = []
        if end.ended_by:
            batches = self.begin()
            self._drop(batches, end.again)
            ahead = list(islice(batches, 1)) if end.ended_by == "data" else []
        set_rng_state(now)
        self.set_generators(own)
        return bool(ahead)

    def begin_as_changed(self, own: Sequence[torch.Tensor]) -> Iterator[Any]:
        """The next pass, once what it said after the end of one was loaded.

        That is of the pass that had ended, and nothing is left of it, or of the next one.
        """
        now = rng_state()
        batches = self.begin()
        first = list(islice(batches, 1))
        if first:
            return chain(first, batches)
        set_rng_state(now)
        self.set_generators(own)
        return self.begin()

    def reorder(self, number: int) -> None:
        """Let its samplers order the pass anew that has this number."""
        for sampler in samplers_of(self.batches):
            if hasattr(sampler, "set_epoch"):
                sampler.set_epoch(number)

    def copied(self) -> Iterable[Any]:
        """The same batches, to be read while these are.

        Raises:
            TypeError: for what can be read only once, or not be copied.
        """
        return copy_of(self.batches, None if self._tracker is None else self._tracker.stateful)

    def doubts(self) -> str:
        """Why a pass over it may not go on as it would have; empty if it does."""
        return doubts_about(self.batches, self.is_stateful)

    def close(self) -> None:
        """End the workers that a DataLoader keeps from pass to pass."""
        if isinstance(self._batches, DataLoader):
            iterator, self._batches._iterator = self._batches._iterator, None
            workers.end(iterator)

    def _drop(self, batches: Iterator[Any], number: int) -> None:
        for _ in islice(batches, number):
            self.position()

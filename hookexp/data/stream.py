"""`BatchStream`: an object that yields ready batches, such as a DataLoader of the user's own.

How a resumed run gets to its batch in the middle of a pass over them:

    there is a state     `state_dict` and `load_state_dict` of the object, of a DataLoader's
                         iterable data set, or of its sampler; no batch is read again but
                         the last one of a limit
    there is none        the generators go back to where the pass began, and the batches before
                         are read and dropped

A state is asked for after each batch and kept with it, since loaders read ahead of the training.
Where none does, it is asked for again once that batch was trained on: a hook may have changed it.

Between two passes a source with a state has to stand as the first of them left it. So what that one
was asked last is asked again: for more than there is, or for the last batch of a limit. Only if a
hook has changed the source since does what it says by then take the place of that.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterable, Iterator, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any

from hookexp.data.doubts import exact_length_of, refuse_early_end
from hookexp.data.settings import ReadChanges, Settings
from hookexp.data.source import Source
from hookexp.data.tracking import Position
from hookexp.differences import first_difference
from hookexp.seed import rng_state

logger = logging.getLogger("hookexp")
_READ_AHEAD = 4
"""More batches than may lie between the one that was read last and the one trained on last."""


@dataclass(frozen=True)
class _Pass:
    """One pass over the batches, from its begin or from where a run was continued."""

    first: int
    """The number its first batch has in the stream, or would have."""
    began_at: int
    """The number of the first one that was read."""
    generators: dict[str, Any]
    """The states of generators when it began: its own and, without a source's state, all."""


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
        self._source = Source(batches)
        self._passes: deque[_Pass] = deque(maxlen=_READ_AHEAD)
        self._positions: deque[tuple[int, Position]] = deque(maxlen=_READ_AHEAD)
        """Where a stateful source stood after the last batches, by the number of the next one."""
        self._handed_out: int | None = None
        """The number of the next batch, while the last one is being trained on."""
        self._end: Position | None = None
        """Where it stood after the last whole pass."""
        self._said_at_end: dict[str, Any] | None = None
        """What it said by then, once that pass was read to its end."""
        self._began_from: dict[str, Any] | None = None
        """What the pass that is being read was begun with."""
        self._to_resume: dict[str, Any] | None = None
        self.reads = ReadChanges()
        self.settings_of_workers: Settings | None = None
        """What those of the present pass were begun with; None if there are none."""
        self._has_told_change = False

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
        return self.reads.watch(self._all(start, state), self.dataset)

    @property
    def has_workers(self) -> bool:
        """Whether a DataLoader reads it in other processes, which have copies of the data set."""
        return self._source.has_workers

    @property
    def may_be_read_ahead(self) -> bool:
        """Whether what it draws at random is apart from what training draws: it has workers.

        Else a batch that is read before the one in training has moved the generators that a
        checkpoint of that moment holds.
        """
        return self.has_workers

    def state_dict(self, number: int) -> dict[str, Any]:
        """What `iterate(number)` of a later process needs; 0 is the begin of the next pass.

        Only of a batch that was read a moment ago. Of a pass that was begun and given up, 0 is its
        own begin.
        """
        if self._to_resume is not None:
            return self._to_resume
        self._look_again()
        if number == 0:
            return self._began_from or self._between(self._end_or_change())
        for one in reversed(self._passes):
            # A batch at the border of two passes is the last of the first one.
            # Without a source's state, the next one, begun ahead, has drawn from the generators.
            counts_from_its_begin = one.first < number or not self._source.is_stateful
            if one.began_at < number or (one.began_at == number and counts_from_its_begin):
                position, generators = self._position(number, one), one.generators
                if position.ended_by:
                    generators = {"own": self._source.generator_states()}
                return _state(number - one.first, position, generators)
        return _begin_and_drop(number)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Let the next `iterate` begin where the state was asked for.

        Between two passes a source stands there at once, so that what hooks set before the next
        one, such as an epoch, is not undone by it.
        """
        if not self._source.is_stateful and state["source"] is not None:
            state = _begin_and_drop(state["in_pass"])  # It has workers now, or is another.
        if _is_between(state):
            self._source.set_generators(state["generators"].get("own", ()))
            if state["source"] is None:
                return
            end = _position_in(state)
            if end.ended_by == "change":
                self._source.load(end.source)
            if end.ended_by == "change" or not self._source.has_gone_over(end):
                self._end = end
                return
        self._to_resume = state

    def apart(self, number: int) -> Iterator[Any]:
        """Batches of copies, which do not move this stream, while it stands before that number.

        They are the next ones of a source that knows where it stands, else another pass; and the
        same ones in a run that was resumed there, where this stream has yet to be iterated.

        Raises:
            TypeError: for what can be read only once, or not be copied.
        """
        other = BatchStream(self._source.copied(), limit=self.limit)
        state = self.state_dict(number)
        if not self._source.is_stateful:
            other._source.set_generators(state["generators"].get("own", ()))
            return other.iterate(0)
        other.endless = self.endless
        other.load_state_dict(state)
        return other.iterate(number)

    def close(self) -> None:
        """End the workers that a DataLoader keeps from pass to pass."""
        self._source.close()

    def doubts(self) -> str:
        """Why a run that is resumed may not be exact; empty if it is."""
        doubts = self._source.doubts()
        if doubts or not self._source.is_stateful or self.limit != 1:
            return doubts
        return (
            "with one batch in an epoch, a run that is resumed is exact only if "
            f"{self._source.name_of_stateful} begins a pass when it is given to iter(), "
            "and not when it is asked for the first item"
        )

    def _all(self, number: int, state: dict[str, Any] | None) -> Iterator[Any]:
        while True:
            num_promised = exact_length_of(self.batches)
            was_resumed = state is not None and not _is_between(state)
            one, batches = self._pass(number, state)
            self._passes.append(one)
            for batch in _limited(batches, self.limit, number - one.first):
                number += 1
                position = self._source.position()
                if position is not None:
                    self._positions.append((number, position))
                try:
                    self._handed_out = number
                    yield batch
                finally:
                    self._look_again()
                    self._handed_out = None
            if self.limit is None or number - one.first < self.limit:
                refuse_early_end(self.batches, number - one.first, num_promised)
            del batches  # Of a pass with a limit workers are left: they end before others begin.
            self._end, self._began_from = self._end_of(number, one), None
            # Where all of a pass was read before the stop, the source has yet to be put there.
            had_ended = was_resumed and state is not None and bool(_position_in(state).ended_by)
            end, state = self._end, None
            if had_ended and end is not None and self._source.has_gone_over(end):
                state = self._between(end)
            is_dry = number == one.began_at and not was_resumed
            if not self.endless or is_dry:
                self._to_resume = state
                if end is not None and end.ended_by and state is None:
                    self._said_at_end = self._source.state()
                return

    def _look_again(self) -> None:
        """Note what training has changed in a source since its last batch, such as losses.

        Not of one that is read ahead of training by workers.
        """
        if not self._source.is_stateful or self._handed_out is None or self.has_workers:
            return
        number, position = self._positions[-1]
        if number == self._handed_out:
            self._positions[-1] = (number, position._replace(source=self._source.state()))

    def _pass(self, number: int, state: dict[str, Any] | None) -> tuple[_Pass, Iterator[Any]]:
        """A pass whose next batch has that number, from its begin or from a state inside it."""
        self._said_at_end = None
        self.settings_of_workers = Settings(self.dataset) if self.has_workers else None
        if state is not None and not _is_between(state):
            position = _position_in(state)
            self._positions.append((number, position))
            one = _Pass(number - state["in_pass"], number, state["generators"])
            self._reorder(one.first)
            if position.ended_by:
                self._source.set_generators(state["generators"].get("own", ()))
                return one, iter(())
            return one, self._source.continued(position, state["in_pass"], state["generators"])
        end = self._end if state is None else _position_in(state)
        self._began_from = self._between(end)
        generators: dict[str, Any] = {"own": self._source.generator_states()}
        if not self._source.is_stateful:
            generators["global"] = rng_state()
        self._reorder(number)
        if end is None:
            batches = self._source.begin()
        elif end.ended_by == "change":
            batches = self._source.begin_as_changed(end.own)
        else:
            batches = self._source.begin() if state is None else self._source.after(end)
        return _Pass(number, number, generators), batches

    def _reorder(self, first: int) -> None:
        """Let a sampler without a state, as torch's for several ranks, order each pass anew.

        A run by epochs has a hook for it. Here the passes are counted by the batches before them,
        which a resumed run knows as well.
        """
        if not self.endless or self._source.is_stateful:
            return
        try:
            length = len(self)
        except TypeError:  # A stream, which has no sampler to order anew.
            length = 1
        self._source.reorder(first // (length or 1))

    def _position(self, number: int, one: _Pass) -> Position:
        """Where the source stood before batch `number`.

        If that was the last one of a limit, it stands where that batch can be read again: many
        objects go on with a pass until they are asked for an item, and only then begin another.
        """
        in_pass, positions = number - one.first, dict(self._positions)
        if not self._source.is_stateful or number not in positions:
            return Position(None, again=in_pass)
        is_last = self.limit is not None and in_pass >= self.limit
        if is_last and in_pass > 1 and number > one.began_at and number - 1 in positions:
            before = positions[number - 1]
            return before._replace(again=before.again + 1)
        return positions[number]

    def _end_of(self, number: int, one: _Pass) -> Position | None:
        """Where the source stood when a pass was over, before what it was asked last."""
        if not self._source.is_stateful:
            return None
        if number == one.began_at and number not in dict(self._positions):
            return Position(self._source.state())  # It was empty.
        is_limited = self.limit is not None and number - one.first >= self.limit
        return self._position(number, one)._replace(ended_by="limit" if is_limited else "data")

    def _between(self, end: Position | None) -> dict[str, Any]:
        """A state between two passes, the first of which ended there; None if there was none.

        A source that was not read is not asked either: torchdata's loader begins a pass to answer.
        """
        return _state(0, end or Position(None), {"own": self._source.generator_states()})

    def _end_or_change(self) -> Position | None:
        """Where the last pass has ended, or what a hook has made of the source since."""
        if self._said_at_end is None or self._end is None:
            return self._end
        now = self._source.state()
        change = first_difference(self._said_at_end, now)
        if change is None:
            return self._end
        if self._end.ended_by == "data":
            return Position(now, ended_by="change", own=self._source.generator_states())
        if not self._has_told_change:
            logger.warning(
                "data: %s was changed after a pass that a limit has cut short (%s), which a "
                "resumed run begins without: change it in before_train_epoch",
                self._source.name_of_stateful,
                change,
            )
        self._has_told_change = True
        return self._end


def _state(in_pass: int, position: Position, generators: dict[str, Any]) -> dict[str, Any]:
    return {"in_pass": in_pass, **position._asdict(), "generators": generators}


def _position_in(state: dict[str, Any]) -> Position:
    """The position that a state holds, also one of a checkpoint from before there were all keys."""
    again = state["in_pass"] if state["source"] is None else state.get("again", 0)
    return Position(state["source"], again, state.get("ended_by", ""), state.get("own", ()))


def _is_between(state: dict[str, Any]) -> bool:
    """Whether a pass is begun next, with the generators as they are by then."""
    return state["in_pass"] == 0 and "global" not in state["generators"]


def _begin_and_drop(number: int) -> dict[str, Any]:
    """All that can be said without a state: so many batches come before."""
    return _state(number, Position(None, again=number), {})


def _limited(batches: Iterator[Any], limit: int | None, in_pass: int) -> Iterator[Any]:
    return batches if limit is None else islice(batches, max(limit - in_pass, 0))

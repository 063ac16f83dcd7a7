"""Which object of a source of batches knows where it stands, and what it says after each batch."""

from __future__ import annotations

import copy
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch.utils.data import BatchSampler, DataLoader, IterableDataset


@runtime_checkable
class Stateful(Protocol):
    """Says where it stands, in plain types, and goes on there when it is iterated next.

    `state_dict` is called for each batch when it is handed out and, where no worker reads ahead,
    once more after it was trained on, so what it returns should be small. It says what was handed
    out, the last item included; after the last one of a pass, what is left of it is empty.
    Once a pass has ended it is of that pass or of the next one, as the object likes.

    After `load_state_dict`, the next `iter()` gives what is left of the pass, be it nothing. Every
    other one does what it does in a run that is not stopped: begin a pass, or go on with the last.
    """

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


class Position(NamedTuple):
    """Where a source stands."""

    source: dict[str, Any] | None
    """What it said itself, None if it cannot."""
    again: int = 0
    """How many batches come from there to here."""
    ended_by: str = ""
    """How its pass has ended: `data` if all was read, `limit` if there were enough batches,
    `change` if something has changed the source since. Empty in the middle of a pass."""
    own: Sequence[torch.Tensor] = ()
    """The states of generators that it draws from and does not hold itself."""


class Tracker:
    """Asks a source where it stands after each batch."""

    def __init__(self, stateful: Stateful, items: _Items | None = None) -> None:
        self.stateful = stateful
        self.generators: Sequence[torch.Generator] = ()
        self._where_they_stood: Sequence[torch.Tensor] = ()
        self._at_begin: Sequence[torch.Tensor] = ()
        self._items = items

    def position(self) -> Position:
        """After the batch that was handed out last; once for each."""
        has_ended = self._items is not None and self._items.have_ended
        own = self._catch_up()
        return Position(self.state(), ended_by="data" if has_ended else "", own=own)

    def resume(self, own: Sequence[torch.Tensor]) -> None:
        """Let generators go on where they stood, unless the source draws its order once more.

        They are at the begin of a pass: that is what it draws the order from.
        """
        self._where_they_stood = own
        self._at_begin = [generator.get_state() for generator in self.generators]

    def _catch_up(self) -> list[torch.Tensor]:
        """Where generators stand, once an item of a resumed pass has been read."""
        stood, self._where_they_stood = self._where_they_stood, ()
        for generator, begin, state in zip(self.generators, self._at_begin, stood, strict=False):
            if torch.equal(generator.get_state(), begin):
                generator.set_state(state)
        return [generator.get_state() for generator in self.generators]

    def state(self) -> dict[str, Any]:
        """What it says now, and can change no more."""
        return copy.deepcopy(self.stateful.state_dict())


class _TrackedSampler(Tracker):
    """A sampler whose position after each item waits until that item's batch is handed out."""

    def __init__(self, sampler: Iterable[Any], stateful: Stateful, items: _Items | None) -> None:
        super().__init__(stateful, items)
        self._sampler = sampler
        self._positions: deque[Position] = deque()

    def __iter__(self) -> Iterator[Any]:
        self._positions.clear()
        for item in self._sampler:
            self._positions.append(super().position())
            yield item

    def position(self) -> Position:
        return self._positions.popleft()


class _Items:
    """Single items, which torch reads to their end while it fills a last batch."""

    def __init__(self, items: Any) -> None:
        self._items = items
        self.have_ended = False

    def __iter__(self) -> Iterator[Any]:
        self.have_ended = False
        yield from self._items
        self.have_ended = True


def tracked(batches: Iterable[Any]) -> tuple[Iterable[Any], Tracker | None]:
    """What to iterate over in place of `batches`, and what knows where that stands."""
    if isinstance(batches, Stateful):
        return batches, Tracker(batches)
    if not isinstance(batches, DataLoader):
        return batches, None
    mine = copy.copy(batches)
    if isinstance(batches.dataset, IterableDataset):
        # Each worker has a copy of the data set, and the state is in the copies.
        if isinstance(batches.dataset, Stateful) and batches.num_workers == 0:
            rows = _Items(batches.dataset)
            vars(mine).update(dataset=rows, _iterator=None)
            return mine, Tracker(batches.dataset, rows)
        return batches, None
    outer, stateful = outer_and_stateful(batches)
    if stateful is None:
        return batches, None
    which = "sampler" if batches.batch_sampler is None else "batch_sampler"
    sampler: Any = [*outer, stateful][0]
    items = None
    if outer and all(type(one) is BatchSampler for one in outer):
        sampler = items = _Items(stateful)
        for one in reversed(outer):
            sampler = BatchSampler(sampler, one.batch_size, one.drop_last)
    found = _TrackedSampler(sampler, stateful, items)
    vars(mine).update({which: found, "_iterator": None})
    return mine, found


def copy_of(batches: Iterable[Any], stateful: Any) -> Iterable[Any]:
    """The same batches, to be read while the others are: whatever moves on the way is copied.

    Args:
        stateful: what knows where the batches stand, None if nothing does.

    Raises:
        TypeError: for what can be read only once, or not be copied.
    """
    if stateful is None and not isinstance(batches, DataLoader):
        if iter(batches) is batches:
            raise TypeError(f"{type(batches).__name__} can be read only once, by training")
        return batches
    try:
        if not isinstance(batches, DataLoader):
            return copy.deepcopy(batches)
        # Samplers may hold the data set, which is copied only if it moves itself.
        data = batches.dataset
        names = ("dataset", "generator", "sampler", "batch_sampler")
        copies = copy.deepcopy(
            {name: getattr(batches, name) for name in names},
            {} if stateful is data else {id(data): data},
        )
    except Exception as error:
        what = f"{type(batches).__name__} holds something that cannot be copied ({error})"
        raise TypeError(f"{what}, so it is read by training alone") from error
    mine = copy.copy(batches)
    vars(mine).update(copies, _iterator=None)
    return mine


def generators_of(batches: Iterable[Any]) -> list[torch.Generator]:
    """The generators that a DataLoader and its samplers draw from, where they have their own."""
    found = [getattr(owner, "generator", None) for owner in (batches, *samplers_of(batches))]
    own = {id(g): g for g in found if isinstance(g, torch.Generator)}
    return list(own.values())


def samplers_of(batches: Any) -> list[Any]:
    """What says which samples form a batch, the outermost first."""
    sampler = getattr(batches, "batch_sampler", None)
    if sampler is None:
        sampler = getattr(batches, "sampler", None)
    found: list[Any] = []
    while sampler is not None and all(sampler is not one for one in found):
        found.append(sampler)
        sampler = getattr(sampler, "sampler", None)
    return found


def outer_and_stateful(loader: DataLoader[Any]) -> tuple[list[Any], Any]:
    """The samplers around the outermost one that has a state, and that one or None."""
    outer: list[Any] = []
    for sampler in samplers_of(loader):
        if isinstance(sampler, Stateful):
            return outer, sampler
        outer.append(sampler)
    return outer, None

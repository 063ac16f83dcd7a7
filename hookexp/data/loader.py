"""Loaders: what a loop iterates over, from any batch on.

`MemoryLoader` serves data sets that make whole batches by index; `WorkerLoader` goes through
torch's DataLoader for all others; `BatchStream` takes an object that yields ready batches as it
is. All three answer `iterate(start)`, `len()` and the names published hooks look for: `dataset`,
`sampler`, `batch_sampler`, `batch_size`.
"""

from __future__ import annotations

import copy
import random
from collections.abc import Callable, Iterator
from operator import getitem
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    DataLoader,
    Dataset,
    IterableDataset,
    Sampler,
    default_collate,
    get_worker_info,
)

from hookexp.data import workers
from hookexp.data.doubts import refuse_another_number, tell_of_number
from hookexp.data.sampler import BatchSampler
from hookexp.data.settings import ReadChanges, Settings
from hookexp.data.stream import BatchStream
from hookexp.errors import add_note
from hookexp.seed import derive_seeds


@runtime_checkable
class InMemory(Protocol):
    """A data set that makes a whole batch at once, without Python for each sample."""

    def __len__(self) -> int: ...

    def get_batch(self, indices: Tensor, generator: torch.Generator) -> Any:
        """The collated batch of the samples at `indices` (int64, on the device of the data).

        Random augmentation draws from `generator`, never from the global one; it is on the same
        device.
        """


@runtime_checkable
class Movable(InMemory, Protocol):
    """A data set in memory that can be kept on the GPU, with `data.device_resident=true`."""

    def to(self, device: torch.device) -> Any:
        """Move the data there for good, and return itself."""


BatchTransform = Callable[[Any, torch.Generator], Any]


class MemoryLoader:
    """Whole batches by index: no worker, no collating, one generator for each batch.

    Args:
        device: where the data set's data is, and with it the indices and the generator. What a
            generator draws from one seed differs between CPU and GPU.
        transform: changes each batch, on that device, with the batch's generator.
    """

    may_be_read_ahead = True

    def __init__(
        self,
        dataset: InMemory,
        batch_sampler: BatchSampler,
        device: torch.device | None = None,
        transform: BatchTransform | None = None,
    ) -> None:
        self.dataset = dataset
        self.sampler = self.batch_sampler = batch_sampler
        self.batch_size = batch_sampler.batch_size
        self.device = device or torch.device("cpu")
        self.transform = transform
        self.reads = ReadChanges()
        self._generator = torch.Generator(self.device)

    settings_of_workers = None
    """There are none."""

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        return self.iterate(0)

    def iterate(self, start: int) -> Iterator[Any]:
        """The batches of an epoch from number `start` on."""
        return self.reads.watch(self._batches(start), self.dataset)

    def _batches(self, start: int) -> Iterator[Any]:
        generator, transform = self._generator, self.transform
        who = f"{type(self.dataset).__name__}.get_batch"
        for indices, seed in self.batch_sampler.batches(start, self.device):
            batch = called(who, self.dataset.get_batch, indices, generator.manual_seed(seed))
            refuse_another_number(batch, indices, who)
            yield batch if transform is None else transform(batch, generator)


class WorkerLoader:
    """torch's DataLoader over a map-style data set, seeded for each sample.

    The result does not depend on `num_workers`, and no sample before `start` is read.

    Args:
        options: further arguments of torch's DataLoader (num_workers, pin_memory, ...).
    """

    may_be_read_ahead = True

    def __init__(self, dataset: Dataset[Any], batch_sampler: BatchSampler, **options: Any) -> None:
        self.dataset = dataset
        self.sampler = self.batch_sampler = batch_sampler
        self.batch_size = batch_sampler.batch_size
        self.reads = ReadChanges(tell_of_number)
        self._positions = _SeededIndices(batch_sampler)
        self._iterator: Iterator[Any] | None = None
        self._settings = Settings(None)
        """What was set on the data set when the workers that are kept were begun."""
        self._collate: Callable[[list[Any]], Any] = (
            options.pop("collate_fn", None) or default_collate
        )
        self.dataloader: DataLoader[Any] = DataLoader(
            _SeededSamples(dataset),
            batch_sampler=self._positions,
            collate_fn=self._collate,
            # It draws a base seed for each epoch, which must not come from the global generator.
            generator=torch.Generator(),
            **options,
        )

    def __len__(self) -> int:
        return len(self.batch_sampler)

    def __iter__(self) -> Iterator[Any]:
        return self.iterate(0)

    def iterate(self, start: int) -> Iterator[Any]:
        """The batches of an epoch from number `start` on."""
        self._positions.start = start
        if self.dataloader.num_workers > 0:
            self._end_workers_of_another_recipe()
        self._iterator = workers.iterate(self.dataloader)
        return self.reads.watch(self._iterator, self.dataset)

    @property
    def settings_of_workers(self) -> Settings | None:
        """What those of the present pass were begun with; None if there are none."""
        return self._settings if self.dataloader.num_workers > 0 else None

    def _end_workers_of_another_recipe(self) -> None:
        """Those that are kept copied the data set as it was, and a resumed run's copy it now."""
        settings = Settings(self.dataset)
        if settings.changed_since(self._settings, at_a_glance=True):
            self.close()
        self._settings = settings

    def close(self) -> None:
        """End the workers, also in the middle of a pass."""
        iterator, self._iterator = self._iterator, None
        self.dataloader._iterator = None
        workers.end(iterator)


def called(who: str, function: Callable[..., Any], *arguments: Any) -> Any:
    """What a function of the user's returns, of which no StopIteration gets out.

    Loops would take it for the end of the data.
    """
    try:
        return function(*arguments)
    except StopIteration as error:
        raise RuntimeError(f"{who} raised StopIteration, as next() does") from error


Loader = MemoryLoader | WorkerLoader | BatchStream


def apart(loader: Loader, number: int = 0) -> Iterator[Any]:
    """The batches of an epoch from its begin, read in the middle of it; see `BatchStream.apart`.

    Nothing that the loader reads by moves: neither its sampler nor its workers. What a stream of
    the user's own draws from the global generators is the caller's to put back.

    Args:
        number: how many batches of the epoch training has read. An endless one counts over the
            borders of its rounds, and the batches are those of the present round and the next ones.

    Raises:
        TypeError: for a stream that cannot be read beside training.
    """
    if isinstance(loader, BatchStream):
        return loader.apart(number)
    sampler = copy.copy(loader.batch_sampler)
    first = number - number % (len(loader) or 1)
    if isinstance(loader, MemoryLoader):
        other = MemoryLoader(loader.dataset, sampler, loader.device, loader.transform)
        return other.iterate(first)
    return WorkerLoader(loader.dataset, sampler, collate_fn=loader._collate).iterate(first)


def num_batches(loader: Loader) -> int | None:
    """Batches of one epoch, None if the loader cannot know."""
    try:
        return len(loader)
    except TypeError:
        return None


def is_sample_dataset(source: Any) -> bool:
    """Whether an object gives single samples (by index or as an iterable data set)."""
    if isinstance(source, DataLoader):
        return False
    return isinstance(source, IterableDataset) or hasattr(source, "__getitem__")


class _SeededIndices(Sampler[list[tuple[int, int]]]):
    """Batches of (index, seed of the sample), from `start` on."""

    def __init__(self, batch_sampler: BatchSampler) -> None:
        self.batch_sampler = batch_sampler
        self.start = 0

    def __len__(self) -> int:
        return max(len(self.batch_sampler) - self.start, 0)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for indices, seed in self.batch_sampler.batches(self.start):
            seeds = derive_seeds((seed,), range(len(indices)))
            yield list(zip(indices.tolist(), seeds, strict=True))


class _SeededSamples(Dataset[Any]):
    """Seeds Python, NumPy and torch for each sample, and puts their states back afterwards.

    They are put back where there is no worker, and the states are those of training.
    """

    def __init__(self, dataset: Dataset[Any]) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)  # type: ignore[arg-type]

    def __getitems__(self, positions: list[tuple[int, int]]) -> list[Any]:
        if get_worker_info() is not None:
            return [self._sample(index, seed) for index, seed in positions]
        states = random.getstate(), np.random.get_state(), torch.get_rng_state()
        try:
            return [self._sample(index, seed) for index, seed in positions]
        finally:
            random.setstate(states[0])
            np.random.set_state(states[1])
            torch.set_rng_state(states[2])

    def _sample(self, index: int, seed: int) -> Any:
        random.seed(seed)
        np.random.seed(seed & 0xFFFFFFFF)
        torch.default_generator.manual_seed(seed)
        try:
            return called("__getitem__", getitem, self.dataset, index)
        except Exception as error:
            add_note(error, f"while sample {index} of {type(self.dataset).__name__} was read")
            raise

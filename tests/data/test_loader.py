"""Loaders start anywhere, and what they give does not depend on the number of workers."""

from __future__ import annotations

import os
import random
import sys

import numpy as np
import pytest
import torch
from fakes import TinyData
from torch.utils.data import Dataset

from hookexp.data.loader import BatchStream, MemoryLoader, WorkerLoader, num_batches
from hookexp.data.sampler import BatchSampler

NOTES_ARE_SENT = pytest.mark.skipif(
    sys.version_info < (3, 11), reason="a worker sends its error as Python prints it, without notes"
)


class Augmented(Dataset):
    """Each sample is its index and what the three global generators give."""

    def __init__(self):
        self.read = []

    def __len__(self):
        return 20

    def __getitem__(self, index):
        self.read.append(index)
        noise = [random.random(), np.random.rand(), torch.rand(()).item()]
        return torch.tensor([float(index), *noise], dtype=torch.float64)


def loaded(num_workers, start=0):
    sampler = BatchSampler(20, 4, seed=3, shuffle=True)
    options = {"num_workers": num_workers}
    if num_workers:
        options["multiprocessing_context"] = "fork"
    loader = WorkerLoader(Augmented(), sampler, **options)
    return list(loader.iterate(start)), loader


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_random_augmentation_does_not_depend_on_workers():
    alone, _ = loaded(0)
    with_two, _ = loaded(2)
    assert len(alone) == 5
    assert all(torch.equal(a, b) for a, b in zip(alone, with_two, strict=True))
    noise = torch.cat(alone)[:, 1:]
    assert len(noise.unique()) == noise.numel()


class Torn(Dataset):
    def __getitem__(self, index):
        if index == 13:
            raise KeyError("no label")
        return index


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=NOTES_ARE_SENT)])
def test_an_error_of_a_data_set_says_which_sample_it_was(num_workers):
    loader = WorkerLoader(
        Torn(), BatchSampler(20, 4, seed=3, shuffle=True), num_workers=num_workers
    )
    with pytest.raises(KeyError) as caught:
        list(loader.iterate(0))
    text = "".join([str(caught.value), *getattr(caught.value, "__notes__", ())])
    assert "while sample 13 of Torn was read" in text


class Dry(Dataset):
    """Reads from a stream that ends before it should."""

    def __len__(self):
        return 6

    def __getitem__(self, index):
        return next(iter([])) if index == 4 else torch.tensor(index)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_sample_that_ends_a_stream_does_not_end_the_data(num_workers):
    loader = WorkerLoader(Dry(), BatchSampler(6, 2, seed=0, shuffle=False), num_workers=num_workers)
    with pytest.raises(RuntimeError, match="__getitem__ raised StopIteration"):
        list(loader.iterate(0))


class Counting(Augmented):
    """Samples that depend on how many were read; what only the first one sets is no count."""

    def __init__(self, counts=True):
        super().__init__()
        self.source = Source()
        self.counts, self.num_opened = counts, 0

    def __getitem__(self, index):
        self.num_opened = 1
        self.source.num_read += self.counts
        return super().__getitem__(index) * (1 + self.source.num_read)


class Source:
    def __init__(self):
        self.num_read = 0


@pytest.mark.parametrize("counts", [True, False])
def test_a_data_set_that_counts_what_is_read_is_told_once(caplog, counts):
    loader = WorkerLoader(Counting(counts), BatchSampler(20, 4, seed=3, shuffle=True))
    for _ in range(2):
        list(loader.iterate(0))
    assert len(caplog.messages) == counts
    assert all(m.startswith("Counting.source.num_read changes when") for m in caplog.messages)


class Strong(Dataset):
    """Augmentation whose strength hooks set, here or in one of its transforms."""

    def __init__(self):
        self.strength, self.added, self.steps = 0.0, torch.zeros(5000), []
        self.transforms = [Transform()]

    def __len__(self):
        return 8

    def __getitem__(self, index):
        strength = self.strength + self.added[0] + 0.5 * len(self.steps)
        return torch.tensor([index + strength, self.transforms[0].p, os.getpid()]).double()


class Transform:
    p = 0.0


@pytest.mark.parametrize("change", [None, "strength", "p", "added", "steps"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_set_between_two_passes_holds_from_the_next_one_on(num_workers, change):
    """As in a run that is resumed there, whose workers copy the data set as it is then."""
    data, options = Strong(), {"num_workers": num_workers}
    if num_workers:
        options |= {"multiprocessing_context": "fork", "persistent_workers": True}
    loader = WorkerLoader(data, BatchSampler(8, 4, seed=3, shuffle=False), **options)
    before = torch.cat(list(loader))
    if change == "strength":
        data.strength = 0.5
    elif change == "p":
        data.transforms[0].p = 0.5
    elif change == "added":
        data.added[0] = 0.5
    elif change == "steps":
        data.steps.append("harder")
    after = torch.cat(list(loader))
    loader.close()
    moved = (after - before)[:, :2]
    assert moved.unique().tolist() == ([0.0, 0.5] if change else [0.0])
    are_kept = torch.equal(before[:, 2], after[:, 2])
    assert are_kept == (num_workers == 0 or change is None)


def test_a_start_reads_no_skipped_sample():
    whole, _ = loaded(0)
    rest, loader = loaded(0, start=3)
    assert all(torch.equal(a, b) for a, b in zip(whole[3:], rest, strict=True))
    assert len(loader.dataset.read) == 8


class Counted(Dataset):
    """Counts in shared memory how often each row is read, also by workers."""

    def __init__(self):
        self.read = torch.zeros(20, dtype=torch.int64).share_memory_()

    def __len__(self):
        return 20

    def __getitem__(self, index):
        self.read[index] += 1
        return index


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("endless", [False, True])
def test_a_start_reads_nothing_but_the_rest_also_with_workers(num_workers, endless):
    sampler = BatchSampler(20, 4, seed=3, shuffle=True, endless=endless, limit=5)
    options = {"num_workers": num_workers}
    if num_workers:
        options |= {"multiprocessing_context": "fork", "prefetch_factor": 1}
    loader = WorkerLoader(Counted(), sampler, **options)
    batches = loader.iterate(8 if endless else 3)
    rest = torch.cat([next(batches), next(batches)])
    loader.close()
    # Workers may be a batch ahead each, never behind: 2 + 2 batches of 4.
    read = loader.dataset.read
    assert bool((read[rest] >= 1).all())
    assert 8 <= int(read.sum()) <= (16 if num_workers and endless else 8)


def test_the_global_generators_are_left_as_they_were():
    random.seed(11)
    np.random.seed(11)
    torch.manual_seed(11)
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    loaded(0)
    assert random.getstate() == states[0]
    assert np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_a_memory_loader_hands_out_seeded_generators():
    class Noisy(TinyData):
        def get_batch(self, indices, generator):
            return torch.rand(len(indices), generator=generator)

    sampler = BatchSampler(24, 8, seed=0, shuffle=False)
    loader = MemoryLoader(Noisy(), sampler)
    first, again = list(loader), list(loader.iterate(1))
    assert torch.equal(first[1], again[0]) and torch.equal(first[2], again[1])
    assert not torch.equal(first[0], first[1])


def test_a_stream_of_ready_batches_is_taken_as_it_is():
    batches = BatchStream([1, 2, 3])
    assert list(batches.iterate(1)) == [2, 3]
    assert num_batches(batches) == 3
    endless = BatchStream([1, 2], endless=True).iterate(1)
    assert [next(endless) for _ in range(4)] == [2, 1, 2, 1]
    assert num_batches(BatchStream(iter([1]))) is None
    assert list(BatchStream(iter(()), endless=True)) == []

"""The order of the data is a function of seed, epoch and position."""

from __future__ import annotations

from itertools import chain

import pytest
import torch

from hookexp.data.sampler import BatchSampler


def indices(sampler, start=0, limit=None):
    return [i.tolist() for i, _ in _take(sampler.batches(start), limit)]


def flat(batches):
    return list(chain.from_iterable(batches))


def _take(iterator, limit):
    for n, item in enumerate(iterator):
        if limit is not None and n == limit:
            return
        yield item


def test_an_epoch_holds_each_sample_once_in_an_order_of_its_own():
    sampler = BatchSampler(10, 4, seed=1, shuffle=True)
    first = indices(sampler)
    sampler.set_epoch(1)
    second = indices(sampler)
    assert [len(b) for b in first] == [4, 4, 2]
    assert sorted(flat(first)) == sorted(flat(second)) == list(range(10))
    assert first != second
    assert indices(BatchSampler(10, 4, seed=2, shuffle=True)) != first


@pytest.mark.parametrize("endless", [False, True])
def test_a_start_gives_the_rest_of_the_same_sequence_with_the_same_seeds(endless):
    sampler = BatchSampler(10, 3, seed=1, shuffle=True, endless=endless)
    whole = [(i.tolist(), s) for i, s in _take(sampler.batches(0), 11)]
    rest = [(i.tolist(), s) for i, s in _take(sampler.batches(3), 8)]
    assert rest == whole[3:]


def test_endless_goes_on_with_the_orders_of_later_epochs():
    sampler = BatchSampler(6, 3, seed=1, shuffle=True, endless=True)
    batches = indices(sampler, limit=4)
    by_epoch = BatchSampler(6, 3, seed=1, shuffle=True)
    by_epoch.set_epoch(1)
    assert batches[2:] == indices(by_epoch)


def test_batches_have_different_seeds():
    sampler = BatchSampler(40, 4, seed=1, shuffle=False)
    seeds = [s for _, s in sampler.batches()]
    sampler.set_epoch(1)
    seeds += [s for _, s in sampler.batches()]
    assert len(set(seeds)) == 20


def test_ranks_share_the_data_and_have_as_many_batches():
    parts = [BatchSampler(10, 2, 0, shuffle=True, rank=r, world_size=4) for r in range(4)]
    shares = [flat(indices(p)) for p in parts]
    assert [len(s) for s in shares] == [3, 3, 3, 3]
    assert set(flat(shares)) == set(range(10))


@pytest.mark.parametrize("num_samples", [10, 8, 3])
def test_what_is_not_repeated_is_there_once(num_samples):
    parts = [
        BatchSampler(num_samples, 2, 0, shuffle=False, rank=r, world_size=4, repeat=False)
        for r in range(4)
    ]
    shares = [flat(indices(p)) for p in parts]
    assert sorted(flat(shares)) == list(range(num_samples))
    assert [len(p) for p in parts] == [-(-len(share) // 2) for share in shares]


def test_drop_last_and_no_shuffle():
    sampler = BatchSampler(10, 4, seed=0, shuffle=False, drop_last=True)
    assert indices(sampler) == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert len(sampler) == 2


def test_drawing_does_not_touch_the_global_generator():
    before = torch.get_rng_state()
    indices(BatchSampler(10, 4, seed=1, shuffle=True))
    assert torch.equal(before, torch.get_rng_state())

"""Batches of the user's own go on where they stood, or the run says what it cannot promise."""

from __future__ import annotations

import copy
import multiprocessing
import re
from functools import partial
from itertools import islice

import pytest
import torch
from fakes import TinyData
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    get_worker_info,
)

from hookexp.build_data import _stream
from hookexp.data.stream import BatchStream
from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.optimizer import OptimizerHook
from hookexp.seed import rng_state, set_rng_state

BATCHES = 5


class Rows(Dataset):
    """Twenty rows, each its index and what the global generator gives."""

    def __init__(self):
        self.num_read = 0

    def __len__(self):
        return 4 * BATCHES

    def __getitem__(self, index):
        self.num_read += 1
        return torch.tensor([float(index), torch.rand(()).item()])


class Counter:
    """Where a thing of the user's own stands: in which pass, and how far in it."""

    def __init__(self):
        self.passes, self.position = 0, 0

    def state_dict(self):
        return {"passes": self.passes, "position": self.position}

    def load_state_dict(self, state):
        self.passes, self.position = state["passes"], state["position"]

    def numbers(self, length):
        """The rest of a pass, whose order is another one in each pass."""
        while self.position < length:
            self.position += 1
            yield (7 * self.position + self.passes) % length
        self.passes, self.position = self.passes + 1, 0


class OwnBatches(Counter):
    num_read = 0

    def __iter__(self):
        for number in self.numbers(BATCHES):
            self.num_read += 1
            yield torch.tensor([float(number), self.position])


class OwnRows(Counter, IterableDataset):
    num_read = 0

    def __iter__(self):
        for number in self.numbers(4 * BATCHES):
            self.num_read += 1
            yield torch.tensor([float(number), torch.rand(()).item()])


class OwnSampler(Counter, Sampler):
    def __len__(self):
        return 4 * BATCHES

    def __iter__(self):
        return self.numbers(4 * BATCHES)


class BeginsAnew(Counter):
    """A pass begins at each `iter`, but at the one after a state was loaded: torchdata's way."""

    is_loaded = False

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.is_loaded = True

    def numbers(self, length):
        if not self.is_loaded:
            self.passes, self.position = self.passes + 1, 0
        self.is_loaded = False
        while self.position < length:
            self.position += 1
            yield (7 * self.position + self.passes) % length


class AnewBatches(BeginsAnew, OwnBatches):
    pass


class AnewRows(BeginsAnew, OwnRows):
    pass


class AnewSampler(BeginsAnew, OwnSampler):
    pass


def own_batches():
    return OwnBatches()


def own_rows():
    return DataLoader(OwnRows(), batch_size=4)


def own_sampler():
    return DataLoader(Rows(), batch_size=4, sampler=OwnSampler())


def own_sampler_of_single_samples():
    return DataLoader(Rows(), batch_size=None, sampler=OwnSampler())


def shuffled():
    return DataLoader(Rows(), batch_size=4, shuffle=True)


def shuffled_by_its_own_generator():
    return DataLoader(Rows(), batch_size=4, shuffle=True, generator=torch.Generator())


def odd_batches_of(make):
    """A loader whose last batch is filled while its source comes to its end."""
    source = make()
    if isinstance(source, IterableDataset):
        return DataLoader(source, batch_size=3)
    return DataLoader(Rows(), batch_size=3, sampler=source)


class SamplerOfAnOrder(Sampler):
    """Draws an order and keeps it in its state; its generator, the loader's too, it does not."""

    def __init__(self, generator):
        self.generator, self.order, self.position = generator, [], 0

    def state_dict(self):
        return {"order": self.order, "position": self.position}

    def load_state_dict(self, state):
        self.order, self.position = state["order"], state["position"]
        self.is_resumed = True

    def __len__(self):
        return 4 * BATCHES

    def __iter__(self):
        if not vars(self).pop("is_resumed", False):
            self.order = torch.randperm(len(self), generator=self.generator).tolist()
            self.position = 0
        while self.position < len(self.order):
            self.position += 1
            yield self.order[self.position - 1]


def generator_of_sampler_and_loader():
    generator = torch.Generator().manual_seed(4)
    sampler = SamplerOfAnOrder(generator)
    return DataLoader(Rows(), batch_size=3, sampler=sampler, generator=generator)


class SamplerOfAGenerator(Sampler):
    """Draws an order when it is asked for the first index; its state is where the pass began."""

    def __init__(self):
        self.generator = torch.Generator()
        self.begin, self.position, self.to_skip = self.generator.get_state(), 0, 0

    def state_dict(self):
        return {"begin": self.begin, "position": self.position}

    def load_state_dict(self, state):
        self.generator.set_state(state["begin"])
        self.to_skip = state["position"]

    def __len__(self):
        return 4 * BATCHES

    def __iter__(self):
        self.begin = self.generator.get_state()
        order = torch.randperm(len(self), generator=self.generator).tolist()
        self.position, self.to_skip = self.to_skip, 0
        for index in order[self.position :]:
            self.position += 1
            yield index


def own_sampler_in_a_batch_sampler():
    return DataLoader(Rows(), batch_sampler=BatchSampler(OwnSampler(), 3, False))


class CountedBatches(BatchSampler):
    """Leaves out what was before; the order is that of the sampler in it."""

    number, to_skip = 0, 0

    def state_dict(self):
        return {"number": self.number}

    def load_state_dict(self, state):
        self.to_skip = state["number"]

    def __iter__(self):
        self.number, self.to_skip = self.to_skip, 0
        for batch in islice(super().__iter__(), self.number, None):
            self.number += 1
            yield batch


def generator_in_a_sampler_of_ones_own():
    sampler = RandomSampler(range(20), generator=torch.Generator().manual_seed(4))
    return DataLoader(Rows(), batch_sampler=CountedBatches(sampler, 3, False))


def generator_in_a_batch_sampler():
    sampler = RandomSampler(range(20), generator=torch.Generator().manual_seed(4))
    return DataLoader(Rows(), batch_sampler=BatchSampler(sampler, 3, False))


class Training:
    """Reads batches and draws random numbers, as a model with dropout would."""

    def __init__(self, source, endless=False, limit=None):
        torch.manual_seed(1)
        self.source = source
        self.stream = BatchStream(source, endless, limit)
        self.endless = endless
        self.batch_in_epoch = 0

    def run(self, num_batches):
        seen = []
        while len(seen) < num_batches:
            for batch in self.stream.iterate(self.batch_in_epoch):
                seen.append([*batch.flatten().tolist(), torch.rand(()).item()])
                self.batch_in_epoch += 1
                if len(seen) == num_batches:
                    break
            else:
                assert not self.endless
                self.batch_in_epoch = 0
        return seen

    def run_epochs(self, number):
        seen = []
        for _ in range(number):
            epoch = [batch.flatten().tolist() for batch in self.stream.iterate(0)]
            seen.append([epoch, torch.rand(()).item()])
        return seen

    def save(self):
        state = self.stream.state_dict(self.batch_in_epoch)
        return copy.deepcopy((state, self.batch_in_epoch, rng_state()))

    def load(self, saved):
        state, self.batch_in_epoch, generators = saved
        self.stream.load_state_dict(state)
        set_rng_state(generators)


def of_one_rank_of_two():
    return DataLoader(Rows(), 2, sampler=DistributedSampler(Rows(), num_replicas=2, rank=1))


@pytest.mark.parametrize("endless", [False, True])
@pytest.mark.parametrize("saved_after", [2, 5, 8])
@pytest.mark.parametrize(
    "make",
    [
        own_batches,
        own_rows,
        own_sampler,
        own_sampler_of_single_samples,
        shuffled,
        shuffled_by_its_own_generator,
        of_one_rank_of_two,
    ],
)
def test_a_resume_gives_the_rest_of_the_same_batches(make, saved_after, endless):
    whole = Training(make(), endless).run(13)
    stopped = Training(make(), endless)
    first = stopped.run(saved_after)
    saved = stopped.save()
    resumed = Training(make(), endless)
    torch.rand(3)
    resumed.load(saved)
    assert first + resumed.run(13 - saved_after) == whole


@pytest.mark.parametrize("limit", [None, 3])
def test_a_run_by_iterations_has_the_orders_of_as_many_epochs(limit):
    length = limit or BATCHES
    seen = Training(of_one_rank_of_two(), endless=True, limit=limit).run(3 * length)
    loader, expected = of_one_rank_of_two(), []
    for epoch in range(3):
        loader.sampler.set_epoch(epoch)
        expected += list(loader)[:length]
    assert [row[0::2][:2] for row in seen] == [batch[:, 0].tolist() for batch in expected]


WHOLE_PASSES = [
    *(partial(odd_batches_of, make) for make in (OwnRows, OwnSampler, AnewRows, AnewSampler)),
    partial(odd_batches_of, SamplerOfAGenerator),
    OwnBatches,
    AnewBatches,
    own_sampler_in_a_batch_sampler,
    generator_in_a_batch_sampler,
    generator_in_a_sampler_of_ones_own,
    generator_of_sampler_and_loader,
]


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("endless", [False, True])
@pytest.mark.parametrize("make", WHOLE_PASSES)
def test_a_pass_that_is_over_gives_no_more_after_a_resume(make, endless, limit):
    whole = Training(make(), endless, limit).run(16)
    for saved_after in range(1, 16):
        stopped = Training(make(), endless, limit)
        first, saved = stopped.run(saved_after), stopped.save()
        resumed = Training(make(), endless, limit)
        resumed.load(saved)
        assert first + resumed.run(16 - saved_after) == whole, saved_after


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("make", WHOLE_PASSES)
def test_a_resume_between_two_passes_begins_the_same_next_one(make, limit):
    whole = Training(make(), limit=limit).run_epochs(4)
    for epochs in (1, 2, 3):
        stopped = Training(make(), limit=limit)
        first, saved = stopped.run_epochs(epochs), stopped.save()
        resumed = Training(make(), limit=limit)
        resumed.load(saved)
        assert resumed.save()[0].keys() == saved[0].keys()
        assert first + resumed.run_epochs(4 - epochs) == whole


class Epochs(Sampler):
    """An order for each epoch that is set; its state holds that epoch."""

    def __init__(self):
        self.epoch, self.at, self.goes_on = 0, 0, False

    def __len__(self):
        return 10

    def set_epoch(self, epoch):
        self.epoch = epoch

    def __iter__(self):
        self.at, self.goes_on = self.at if self.goes_on else 0, False
        order = torch.randperm(10, generator=torch.Generator().manual_seed(self.epoch)).tolist()
        while self.at < 10:
            self.at += 1
            yield order[self.at - 1]

    def state_dict(self):
        return {"epoch": self.epoch, "at": self.at}

    def load_state_dict(self, state):
        self.epoch, self.at, self.goes_on = state["epoch"], state["at"], True


@pytest.mark.parametrize("limit", [None, 2])
@pytest.mark.parametrize("saved_after", [0, "the last"])
def test_an_epoch_that_is_set_between_two_passes_holds_after_a_resume(limit, saved_after):
    def make():
        return BatchStream(DataLoader(range(10), 4, sampler=Epochs()), limit=limit)

    def second_epoch(stream):
        stream.sampler.set_epoch(1)
        return [batch.tolist() for batch in stream.iterate(0)]

    whole, resumed = make(), make()
    number = len(whole) if saved_after == "the last" else 0
    batches = whole.iterate(0)
    list(islice(batches, number or None))
    resumed.load_state_dict(copy.deepcopy(whole.state_dict(number)))
    assert list(batches) == []
    if number:
        assert list(resumed.iterate(number)) == []
    assert second_epoch(resumed) == second_epoch(whole)


class Hardening(OwnBatches):
    """Batches that what was trained on makes harder."""

    def __init__(self):
        super().__init__()
        self.scale = 1.0

    def __iter__(self):
        for batch in super().__iter__():
            yield batch * self.scale

    def state_dict(self):
        return {**super().state_dict(), "scale": self.scale}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.scale = state["scale"]


@pytest.mark.parametrize("endless", [False, True])
def test_what_training_changes_in_a_source_is_in_its_state(endless):
    def train(stream, number):
        for batch in stream.iterate(number):
            stream.batches.scale += 0.5
            yield number + 1, batch.tolist(), copy.deepcopy(stream.state_dict(number + 1))
            number += 1

    def rows(stream, number=0):
        return list(islice(train(stream, number), 12 - number))

    whole = rows(BatchStream(Hardening(), endless))
    for number, _, state in whole[:-1]:
        resumed = BatchStream(Hardening(), endless)
        resumed.load_state_dict(state)
        again = rows(resumed, number)
        assert [row[1] for row in again] == [row[1] for row in whole[number:]]


class Scaled:
    """A mixin: what it gives is moved by what a hook has set, which is in its state."""

    shift = 0

    def __iter__(self):
        return ((one + self.shift) % 20 for one in super().__iter__())

    def state_dict(self):
        return {**super().state_dict(), "shift": self.shift}

    def load_state_dict(self, state):
        super().load_state_dict(state)
        self.shift = state["shift"]


def shifted(kind, **loader):
    """A source of that kind with what a hook changes in it, which is the sampler of a loader."""
    source = type(f"Shifted{kind.__name__}", (Scaled, kind), {})()
    return (DataLoader(Rows(), sampler=source, **loader) if loader else source), source


@pytest.mark.parametrize(
    "make",
    [
        partial(shifted, OwnBatches),
        partial(shifted, AnewBatches),
        *(
            partial(shifted, sampler, batch_size=batch_size, num_workers=workers)
            for sampler, batch_size, workers in (
                (OwnSampler, 4, 0),
                (AnewSampler, 3, 0),
                (AnewSampler, 3, 1),
                (SamplerOfAGenerator, 3, 0),
            )
        ),
    ],
)
def test_what_a_hook_changes_in_a_source_between_two_passes_is_in_its_state(make):
    def run(saved=None, epochs=(0, 1, 2, 3)):
        batches, source = make()
        training = Training(batches)
        if saved is not None:
            training.load(saved)
        for _ in epochs:
            seen = training.run_epochs(1)
            source.shift += 3
            yield seen, training.save()

    whole = list(run())
    for epoch in range(3):
        again = run(whole[epoch][1], range(epoch + 1, 4))
        assert [seen for seen, _ in again] == [seen for seen, _ in whole[epoch + 1 :]], epoch


@pytest.mark.parametrize(("shift", "times"), [(3, 1), (0, 0)])
def test_a_change_after_a_pass_of_a_limit_is_told_once(caplog, shift, times):
    source = shifted(OwnBatches)[0]
    training = Training(source, limit=2)
    for _ in range(3):
        training.run_epochs(1)
        source.shift += shift
        training.save()
    assert caplog.text.count("ShiftedOwnBatches was changed after") == times


@pytest.mark.parametrize("make", [AnewBatches, OwnBatches, shuffled_by_its_own_generator])
def test_a_pass_that_is_given_up_is_begun_again(make):
    whole = Training(make(), limit=3).run_epochs(3)
    stopped = Training(make(), limit=3)
    first, saved = stopped.run_epochs(1), stopped.save()
    next(stopped.stream.iterate(0))
    resumed = Training(make(), limit=3)
    resumed.load((stopped.stream.state_dict(0), *saved[1:]))
    assert first + resumed.run_epochs(2) == whole


@pytest.mark.parametrize("make", [own_batches, own_rows])
def test_with_a_state_nothing_is_read_twice(make):
    stopped = Training(make())
    stopped.run(3)
    resumed = Training(make())
    resumed.load(stopped.save())
    assert resumed.save()[0] == stopped.save()[0]
    resumed.run(2)
    source = getattr(resumed.source, "dataset", resumed.source)
    assert source.num_read == (2 if make is own_batches else 8)


@pytest.mark.parametrize("saved_after", [2, 4, 8])
@pytest.mark.parametrize("make", [own_batches, shuffled, shuffled_by_its_own_generator])
def test_a_batch_that_was_read_and_not_trained_on_is_given_again(make, saved_after):
    """As when an error comes before the first step after a resume."""
    whole = Training(make(), endless=True).run(13)
    stopped = Training(make(), endless=True)
    first = stopped.run(saved_after)
    saved = stopped.save()
    for _ in range(2):
        resumed = Training(make(), endless=True)
        resumed.load(saved)
        next(resumed.stream.iterate(resumed.batch_in_epoch))
        saved = (resumed.stream.state_dict(saved_after), *saved[1:])
    resumed = Training(make(), endless=True)
    resumed.load(saved)
    assert first + resumed.run(13 - saved_after) == whole


FIXED = torch.arange(4.0 * BATCHES)
"""Rows that draw nothing: read ahead they would draw before training does."""


def fixed():
    return DataLoader(FIXED, batch_size=4, shuffle=True)


def fixed_by_its_own_generator():
    generator = torch.Generator().manual_seed(3)
    return DataLoader(FIXED, batch_size=4, shuffle=True, generator=generator)


def fixed_by_a_sampler():
    return DataLoader(FIXED, batch_size=4, sampler=OwnSampler())


class Ahead:
    """Batches of a stream, with the next one read before one is handed out, as on a GPU."""

    def __init__(self, stream):
        self.stream = stream

    def __getattr__(self, name):
        return getattr(self.stream, name)

    def iterate(self, start):
        held = []
        for batch in self.stream.iterate(start):
            held.append(batch)
            if len(held) > 1:
                yield held.pop(0)
        yield from held


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("endless", [False, True])
@pytest.mark.parametrize(
    "make", [own_batches, fixed, fixed_by_its_own_generator, fixed_by_a_sampler]
)
def test_a_stream_that_is_read_ahead_resumes_at_every_batch(make, endless, limit):
    def training():
        one = Training(make(), endless, limit)
        one.stream = Ahead(one.stream)
        return one

    def batches(seen):  # What training draws comes later than in a run without reading ahead.
        return [values[:-1] for values in seen]

    whole = batches(training().run(12))
    for saved_after in range(1, 12):
        stopped = training()
        first, saved = batches(stopped.run(saved_after)), stopped.save()
        resumed = training()
        resumed.load(saved)
        assert first + batches(resumed.run(12 - saved_after)) == whole, saved_after


def test_a_limit_counts_what_was_before_the_stop():
    whole = Training(shuffled(), limit=3).run(6)
    stopped = Training(shuffled(), limit=3)
    first, saved = stopped.run(2), stopped.save()
    resumed = Training(shuffled(), limit=3)
    resumed.load(saved)
    assert first + resumed.run(4) == whole


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("make", ["sampler", "shuffled"])
def test_workers_that_read_ahead_do_not_move_the_position(make):
    def loader():
        workers = {"num_workers": 2, "multiprocessing_context": "fork"}
        if make == "sampler":
            return DataLoader(Plain(), batch_size=4, sampler=OwnSampler(), **workers)
        return DataLoader(Rows(), batch_size=4, shuffle=True, **workers)

    class Plain(Dataset):
        def __getitem__(self, index):
            return torch.tensor([float(index)])

    whole = Training(loader()).run(7)
    stopped = Training(loader())
    first, saved = stopped.run(3), stopped.save()
    resumed = Training(loader())
    resumed.load(saved)
    assert first + resumed.run(4) == whole


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_workers_that_a_loader_keeps_draw_as_new_ones_do():
    def training():
        workers = {"num_workers": 1, "multiprocessing_context": "fork", "persistent_workers": True}
        return Training(DataLoader(Rows(), batch_size=8, shuffle=True, **workers))

    whole = training().run(8)
    stopped = training()
    first, saved = stopped.run(4), stopped.save()
    stopped.stream.close()
    resumed = training()
    resumed.load(saved)
    assert first + resumed.run(4) == whole
    resumed.stream.close()


@pytest.mark.parametrize("in_pass", [0, 2])
def test_a_state_that_the_data_no_longer_takes_is_read_up_to(in_pass):
    """As where the run goes on with workers, which have copies of the data set."""
    stopped = Training(own_rows())
    stopped.run(5 + in_pass)
    stopped.batch_in_epoch %= 5
    resumed = Training(DataLoader(range(20), batch_size=4))
    resumed.load(stopped.save())
    assert resumed.run(1)[0][:-1] == [4 * in_pass + n for n in range(4)]


def test_the_loader_of_the_user_is_left_as_it_was():
    loader = own_sampler()
    before = dict(vars(loader))
    Training(loader).run(2)
    assert vars(loader) == before


def test_workers_begin_as_the_loader_of_the_user_says():
    class Shifted(Rows):
        shift = 0

        def __getitem__(self, index):
            return index + self.shift

    def shift(worker_id):
        get_worker_info().dataset.shift = 100

    loader = DataLoader(Shifted(), num_workers=1, worker_init_fn=shift)
    before = dict(vars(loader))
    assert next(BatchStream(loader).iterate(0)) == 100
    assert vars(loader) == before


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_the_workers_of_a_pass_with_a_limit_end_before_those_of_the_next_begin():
    class Watch(OddSampler):
        def __iter__(self):
            at_work.append(len(multiprocessing.active_children()))
            return super().__iter__()

    at_work = []
    workers = {"num_workers": 1, "multiprocessing_context": "fork"}
    loader = DataLoader(range(20), batch_size=None, sampler=Watch(), **workers)
    batches = BatchStream(loader, endless=True, limit=2).iterate(0)
    assert [int(next(batches)) for _ in range(5)] == [0, 1, 0, 1, 0]
    assert max(at_work) == 1


def test_workers_that_a_loader_keeps_end_with_the_run(make_runner):
    loader = DataLoader(TinyData(24), batch_size=4, num_workers=1, persistent_workers=True)
    runner = make_runner(max_epochs=2, val_size=0)
    runner._parts.train_loader = runner.train_loop.dataloader = BatchStream(loader)
    runner.run("train")
    assert multiprocessing.active_children() == []
    assert len(list(loader)) == 6


class Stateless(IterableDataset):
    def __iter__(self):
        return iter(range(20))


class OddSampler(Sampler):
    def __len__(self):
        return 20

    def __iter__(self):
        return iter(range(20))


class Pools(BatchSampler):
    pass


class StatefulLoader(Counter, DataLoader):
    def __init__(self, *args, **more):
        Counter.__init__(self)
        DataLoader.__init__(self, *args, **more)


def of_rows_that_draw(is_the_loaders=False, **more):
    """A loader of rows that draw from a generator of their own, or from the loader's."""
    rows, loaders = Rows(), torch.Generator()
    rows.generator = loaders if is_the_loaders else torch.Generator()
    return DataLoader(rows, generator=loaders, **more)


class Jitter:
    def __init__(self):
        self.chance = torch.Generator()


def of_rows_with_a_transform():
    """A loader of rows that have one with a generator of its own, in a list."""
    rows = Rows()
    rows.transforms = [Jitter()]
    return DataLoader(rows)


@pytest.mark.parametrize(
    ("source", "doubts"),
    [
        ([1, 2], ""),
        (own_batches(), ""),
        (own_rows(), ""),
        (own_sampler(), ""),
        (shuffled(), ""),
        (iter([1]), "list_iterator has no state_dict and load_state_dict: .* the same ones again"),
        (DataLoader(Stateless()), "Stateless has no state_dict"),
        (DataLoader(OwnRows(), num_workers=2), "in the 2 workers' copies .*num_workers=0 resumes"),
        (DataLoader(Rows(), sampler=OddSampler()), "OddSampler has no state_dict"),
        (own_sampler_in_a_batch_sampler(), ""),
        (generator_in_a_batch_sampler(), ""),
        (
            DataLoader(Rows(), batch_sampler=BatchSampler(OddSampler(), 4, False)),
            "OddSampler has no state_dict .* the same ones again",
        ),
        (
            DataLoader(Rows(), batch_sampler=Pools(OwnSampler(), 4, False)),
            "Pools has no state_dict .* keeps nothing from batch to batch",
        ),
        (
            DataLoader(Rows(), sampler=OwnSampler(), num_workers=2),
            "what the DataLoader's 2 workers draw at random begins anew",
        ),
        (DataLoader(Rows(), num_workers=2, in_order=False), "in_order=False gives batches as"),
        (DataLoader(Rows(), in_order=False), ""),
        (of_rows_that_draw(), "Rows.generator is a generator of its own"),
        (of_rows_that_draw(is_the_loaders=True), ""),
        (of_rows_that_draw(is_the_loaders=True, sampler=OwnSampler()), "Rows.generator"),
        (of_rows_that_draw(num_workers=2), ""),
        (of_rows_with_a_transform(), "Rows.transforms.0.chance is a generator of its own"),
        (StatefulLoader(Rows()), ""),
        (StatefulLoader(Rows(), generator=torch.Generator()), "only if its state_dict holds that"),
    ],
)
def test_what_cannot_be_promised(source, doubts):
    said = BatchStream(source).doubts()
    assert bool(said) == bool(doubts)
    if doubts:
        assert re.search(doubts, said)


@pytest.mark.parametrize(
    ("limit", "doubts"), [(None, ""), (2, ""), (1, "OwnBatches begins a pass")]
)
def test_epochs_of_one_batch_are_doubted(limit, doubts):
    said = BatchStream(own_batches(), limit=limit).doubts()
    assert doubts in said
    assert bool(said) == bool(doubts)


@pytest.mark.parametrize("budget", [{"max_epochs": 3}, {"max_iters": 13}])
@pytest.mark.parametrize("stop_at", [3, 5, 8])
def test_a_run_goes_on_in_its_own_batches(make_runner, tmp_path, budget, stop_at):
    class Pairs(OwnBatches):
        def __iter__(self):
            for row in super().__iter__():
                yield row.repeat(8, 2), row.repeat(8, 1)[:, :1]

    read = []

    def run(folder, iterations=None, **more):
        hooks = {"optimizer": OptimizerHook(), "checkpoint": CheckpointHook(by_epoch=False)}
        runner = make_runner(hooks, work_dir=folder, with_optimizer=False, **budget, **more)
        source = Pairs()
        stream = BatchStream(source, endless=not runner.by_epoch)
        runner._parts.train_loader = runner.train_loop.dataloader = stream

        class Watch(Hook):
            def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
                read.append(data_batch[0][0].tolist())
                if runner.iter + 1 == iterations:
                    runner.state.stop("enough", urgent=True)

        runner.register_hook(Watch())
        runner.run("train")
        return source.num_read

    run(tmp_path / "whole")
    whole, read[:] = list(read), []
    run(tmp_path / "cut", stop_at)
    num_read = run(tmp_path / "cut", resume="auto")
    assert read == whole
    assert num_read == len(whole) - stop_at


@pytest.mark.parametrize("limit", [None, 3])
@pytest.mark.parametrize("make", [own_sampler, shuffled_by_its_own_generator])
def test_a_run_that_is_extended_begins_the_next_pass(make_runner, tmp_path, make, limit):
    read = []

    def run(folder, max_epochs, **more):
        hooks = {"optimizer": OptimizerHook(), "checkpoint": CheckpointHook()}
        sizes = {"with_optimizer": False, "val_size": 0, "limit_train_batches": limit}
        runner = make_runner(hooks, work_dir=folder, max_epochs=max_epochs, **sizes, **more)
        stream = BatchStream(make(), limit=limit)
        runner._parts.train_loader = runner.train_loop.dataloader = stream
        runner.forward_train = lambda batch: (
            read.append(batch[:, 0].tolist()) or {"loss": runner.model(torch.rand(2, 4)).sum()}
        )
        runner.run("train")

    run(tmp_path / "whole", 4)
    whole, read[:] = list(read), []
    run(tmp_path / "cut", 2)
    run(tmp_path / "cut", 4, resume="auto")
    assert read == whole


@pytest.mark.parametrize("make", [OwnBatches, AnewBatches, shuffled_by_its_own_generator])
@pytest.mark.parametrize("stop", [(2, "train"), (4, "train"), (5, "train"), (6, "val")])
def test_a_validation_goes_on_in_its_own_batches(make_runner, tmp_path, stop, make):
    read = []

    def run(folder, stop_at=None, **more):
        hooks = {"optimizer": OptimizerHook(), "checkpoint": CheckpointHook(by_epoch=False)}
        runner = make_runner(hooks, work_dir=folder, with_optimizer=False, max_epochs=3, **more)
        stream = BatchStream(make(), limit=3)
        runner._parts.val_loader = runner.val_loop.dataloader = stream
        runner.forward_eval = lambda batch, mode: {}
        runner.task.compute_metrics = dict

        class Watch(Hook):
            def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
                if (runner.iter + 1, "train") == stop_at:
                    runner.state.stop("enough", urgent=True)

            def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
                read.append(data_batch.tolist())
                if (runner.iter, "val") == stop_at:
                    runner.state.stop("enough", urgent=True)

        runner.register_hook(Watch())
        runner.run("train")

    run(tmp_path / "whole")
    whole, read[:] = list(read), []
    run(tmp_path / "cut", stop)
    if stop[1] == "val":
        del read[3:]
    run(tmp_path / "cut", resume="auto")
    assert read == whole


@pytest.mark.parametrize("stop_at", [2, 3, 7])
def test_rows_that_draw_in_the_runs_own_process_are_not_read_ahead(make_runner, tmp_path, stop_at):
    class Noise(Rows):
        def __getitem__(self, index):
            return torch.rand(4), torch.rand(1)

    seen = []

    def ahead(batches):
        held = []
        for batch in batches:
            held.append(batch)
            if len(held) > 1:
                yield held.pop(0)
        yield from held

    def run(folder, iterations=None, **more):
        hooks = {"optimizer": OptimizerHook(), "checkpoint": CheckpointHook(by_epoch=False)}
        runner = make_runner(hooks, work_dir=folder, with_optimizer=False, max_epochs=2, **more)
        runner._parts.train_loader = runner.train_loop.dataloader = BatchStream(
            DataLoader(Noise(), batch_size=4, shuffle=True)
        )
        runner.prefetch = ahead

        class Watch(Hook):
            def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
                seen.append([data_batch[0].tolist(), torch.rand(()).item()])
                if runner.iter + 1 == iterations:
                    runner.state.stop("enough", urgent=True)

        runner.register_hook(Watch())
        runner.run("train")

    torch.manual_seed(5)
    run(tmp_path / "whole")
    whole, seen[:] = list(seen), []
    torch.manual_seed(5)
    run(tmp_path / "cut", stop_at)
    run(tmp_path / "cut", resume="auto")
    assert seen == whole


@pytest.mark.parametrize(("training", "times"), [(True, 1), (False, 0)])
def test_a_run_says_once_what_it_cannot_promise(caplog, training, times):
    _stream(DataLoader(Stateless()), endless=False, limit=None, training=training)
    assert caplog.text.count("data.train: Stateless has no state_dict") == times

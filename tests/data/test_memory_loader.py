"""Whole batches by index: where the data is and what changes a batch, from the config to a run."""

from __future__ import annotations

import pytest
import torch
from fakes import TinyData
from hydra import compose
from torch.utils.data import DataLoader, Dataset

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_runner
from hookexp.compose.conf_dir import with_hydra
from hookexp.data import sampler as sampler_module
from hookexp.data.loader import MemoryLoader, apart
from hookexp.data.sampler import BatchSampler
from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.seed import derive_seed

HERE = __name__
SHIFT = "data.transform={_target_: hookexp.data.augment.random_shift, _partial_: true}"


class Wrong(TinyData):
    """Makes its second batch in a way of one's own."""

    def __init__(self, second):
        super().__init__()
        self.second = second

    def get_batch(self, indices, generator):
        inputs, targets = super().get_batch(indices, generator)
        return self.second(inputs, targets) if 3 in indices else (inputs, targets)


def loader_of(second):
    return MemoryLoader(Wrong(second), BatchSampler(24, 3, seed=0, shuffle=False))


def test_a_batch_that_ends_a_stream_does_not_end_the_data():
    with pytest.raises(RuntimeError, match=r"^Wrong\.get_batch raised StopIteration, as next\(\)"):
        list(loader_of(lambda inputs, targets: next(iter([]))))


@pytest.mark.parametrize(
    ("second", "found"),
    [
        (lambda inputs, targets: (inputs[1:], targets[1:]), 2),
        (lambda inputs, targets: {"x": inputs[:0], "y": targets[:0]}, 0),
        (lambda inputs, targets: (inputs.repeat(2, 1)[:5], targets.repeat(2, 1)[:5]), 5),
        (lambda inputs, targets: inputs.numpy()[1:], 2),
    ],
)
def test_a_batch_of_another_number_of_samples_is_refused(second, found):
    with pytest.raises(ConfigError) as caught:
        list(loader_of(second))
    assert str(caught.value) == (
        f"Wrong.get_batch returned {found} samples for 3 indices, 3, 4, 5; it has to return one "
        "for each"
    )


@pytest.mark.parametrize(
    "second",
    [
        lambda inputs, targets: (inputs.T, targets.T.repeat(4, 1)),  # Steps of time first.
        lambda inputs, targets: (inputs.repeat(2, 1), targets.repeat(2, 1)),  # Two views of each.
        lambda inputs, targets: {"tokens": torch.arange(7), "last": torch.arange(7)},  # Packed.
        lambda inputs, targets: (inputs[:2], torch.arange(4)),  # Nobody knows.
        lambda inputs, targets: ([torch.ones(2, 5)] * 3, [torch.ones(2, 4)] * 3),  # Of any size.
        lambda inputs, targets: "a batch of one's own",
    ],
)
def test_batches_of_other_kinds_are_taken(second):
    assert len(list(loader_of(second))) == 8


class BySample(Dataset):
    def __len__(self):
        return 12

    def __getitem__(self, index):
        return TinyData()[index]


def ready_batches():
    return DataLoader(BySample(), batch_size=3)


class StopAt(Hook):
    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration and not runner.resumed:
            runner.state.stop("told to", urgent=True)


def train(target):
    return ["~data.train.split", f"data.train._target_={target}"]


def noisy(batch, generator):
    return batch[0] + torch.rand(batch[0].shape, generator=generator), batch[1]


def build(tmp_path, *overrides):
    common = ["trainer.device=cpu", "trainer.max_epochs=2", "sinks=none", "model.width=2"]
    common += ["trainer.limit_train_batches=5", "trainer.limit_val_batches=1"]
    with with_hydra():
        return build_runner(compose("config", overrides=[*common, *overrides]), tmp_path)


@pytest.mark.parametrize("start", [0, 1, 4, 5, 13])
@pytest.mark.parametrize(
    "options",
    [
        {"shuffle": True},
        {"shuffle": True, "drop_last": True},
        {"shuffle": False, "limit": 3},
        {"shuffle": True, "rank": 1, "world_size": 2},
        {"shuffle": True, "endless": True},
    ],
)
def test_batches_cut_together_are_those_cut_one_by_one(monkeypatch, options, start):
    monkeypatch.setattr(sampler_module, "_AT_ONCE", 2)
    sampler = BatchSampler(27, 5, seed=4, **options)
    got = [batch for batch, _ in zip(sampler.batches(start), range(20), strict=False)]
    per_epoch, world = len(sampler), sampler.world_size
    last = start + 20 if sampler.endless else per_epoch
    wanted = []
    for number in range(start, last):
        epoch, batch = divmod(number, per_epoch)
        indices = sampler._order(epoch)[batch * 5 : batch * 5 + 5]
        wanted.append((indices, derive_seed(4, epoch, batch * world + sampler.rank)))
    assert [seed for _, seed in got] == [seed for _, seed in wanted]
    assert all(torch.equal(a[0], b[0]) for a, b in zip(got, wanted, strict=True))


def test_a_transform_draws_from_the_generator_of_its_batch():
    def loader():
        return MemoryLoader(TinyData(), BatchSampler(24, 8, 0, shuffle=False), transform=noisy)

    whole, rest, beside = list(loader()), list(loader().iterate(1)), list(apart(loader()))
    assert torch.equal(whole[1][0], rest[0][0]) and torch.equal(whole[2][0], rest[1][0])
    assert all(torch.equal(a[0], b[0]) for a, b in zip(whole, beside, strict=True))
    added = torch.cat([batch[0] for batch in whole]) - TinyData().inputs
    assert added.min() >= -1e-6 and len(added.unique()) > 90


def test_the_training_data_is_transformed_and_the_others_are_not(tmp_path):
    runner = build(tmp_path, SHIFT)
    plain = build(tmp_path, "data.transform=null")
    for loader, other, same in (
        (runner.train_dataloader, plain.train_dataloader, False),
        (runner.val_dataloader, plain.val_dataloader, True),
    ):
        one, two = next(iter(loader)), next(iter(other))
        assert torch.equal(one[1], two[1]) and torch.equal(one[0], two[0]) is same


def test_a_run_with_resident_data_is_the_same_run(tmp_path):
    weights = []
    for word in ("data.device_resident=true", "data.device_resident=false"):
        runner = build(tmp_path / word, SHIFT, word, "hooks=-checkpoint")
        runner.run("train")
        weights.append(runner.model.state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])


def test_a_resumed_run_transforms_as_the_one_that_was_not_stopped(tmp_path):
    def run(folder, *overrides):
        folder.mkdir(exist_ok=True)
        words = [SHIFT, "data.device_resident=true", "data.drop_last=true"]
        runner = build(folder, *words, "hooks.checkpoint.by_epoch=false", *overrides)
        runner.run("train")
        return runner.model.state_dict()

    stop = [f"+hooks.stop._target_={HERE}.StopAt", "+hooks.stop.iteration=7"]
    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", *stop)
    rest = run(tmp_path / "cut", "resume=auto")
    assert all(torch.equal(whole[k], rest[k]) for k in whole)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            [*train(f"{HERE}.BySample"), "data.device_resident=true"],
            r"data\.device_resident: needs data that makes whole batches .*BySample \(data\.train",
        ),
        ([*train(f"{HERE}.ready_batches"), SHIFT], r"data\.transform: needs"),
        (
            [*train("fakes.TinyData"), "data.device_resident=true"],
            r"TinyData \(data\.train\) has no method to\(device\)",
        ),
        (
            ["data.transform={_target_: collections.Counter}"],
            r"data\.transform\._target_=collections\.Counter: makes a Counter, .*_partial_: true",
        ),
        (
            ["data.transform={_target_: hookexp.data.augment.random_shift}"],
            r"random_shift: .* missing .*'batch'.*\(batch, generator\) needs _partial_: true",
        ),
    ],
)
def test_what_is_refused(tmp_path, overrides, message):
    with pytest.raises(ConfigError, match=message):
        build(tmp_path, *overrides)

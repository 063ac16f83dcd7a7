"""What hooks set on a data set while a run goes on comes back after a resume."""

from __future__ import annotations

import multiprocessing
import threading
from types import SimpleNamespace

import pytest
import torch
from fakes import StopAt, TinyData
from torch.utils.data import ConcatDataset, DataLoader, IterableDataset, Subset

from hookexp.checkpoint.data_settings import DataSettings
from hookexp.checkpoint.reading import load_checkpoint
from hookexp.data.loader import WorkerLoader
from hookexp.data.sampler import BatchSampler
from hookexp.data.stream import BatchStream
from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.optimizer import OptimizerHook
from hookexp.hooks.sampler_seed import DistSamplerSeedHook
from hookexp.hooks.switch_recipe import SwitchRecipeHook


class Noise:
    """A transform that a hook makes stronger."""

    def __init__(self):
        self.strength, self.shares, self.steps = 0.0, torch.ones(4), ["first"]
        self.table, self.shared = torch.zeros(5000), multiprocessing.Value("d", 0.0)

    def __call__(self, inputs):
        return inputs * self.shares + self.strength * len(self.steps) + self.offset

    @property
    def offset(self):
        return self.table[0] + self.shared.value


class Hard(TinyData):
    """Samples through transforms; ready batches too."""

    def __init__(self):
        super().__init__()
        self.transforms = [Noise()]

    def __getitem__(self, index):
        return self.transforms[0](self.inputs[index]), self.targets[index]

    def get_batch(self, indices, generator):
        return self[indices]


class Harder(Hook):
    """Sets a number, writes into a small and a large tensor and adds to a list."""

    def __init__(self, by_epoch):
        self.by_epoch = by_epoch

    def after_train_epoch(self, runner):
        if self.by_epoch:
            self.change(runner)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if not self.by_epoch:
            self.change(runner)

    def change(self, runner):
        data = runner.train_dataloader.dataset
        while not isinstance(data, Hard):
            data = data.dataset if isinstance(data, Subset) else data.datasets[0]
        noise = data.transforms[0]
        noise.strength += 0.1
        noise.shares[0] *= 0.9
        noise.steps.append("more")
        noise.table[0] += 0.3
        noise.shared.value += 0.2


def by_sample(dataset):
    return WorkerLoader(dataset, BatchSampler(len(dataset), 8, seed=1, shuffle=True))


def nested(dataset):
    return by_sample(ConcatDataset([Subset(dataset, range(16)), TinyData(8)]))


def of_the_users(dataset):
    return BatchStream(DataLoader(dataset, batch_size=8, shuffle=True))


@pytest.mark.parametrize("stop_at", [2, 3, 7])
@pytest.mark.parametrize("by_epoch", [True, False])
@pytest.mark.parametrize("make", [None, by_sample, nested, of_the_users])
def test_a_resumed_run_has_the_same_samples(make_runner, tmp_path, make, by_epoch, stop_at):
    seen = []

    class Watch(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.append(data_batch[0].tolist())

    def run(folder, *hooks, **more):
        torch.manual_seed(1)
        parts = {"optimizer": OptimizerHook(), "seed": DistSamplerSeedHook()}
        parts |= {"harder": Harder(by_epoch), "watch": Watch()}
        parts |= {"checkpoint": CheckpointHook(by_epoch=False)}
        parts |= {str(number): hook for number, hook in enumerate(hooks)}
        runner = make_runner(
            parts, work_dir=folder, with_optimizer=False, max_epochs=3, val_size=0, **more
        )
        dataset = Hard()
        loader = runner.train_dataloader if make is None else make(dataset)
        loader.dataset = dataset if make is None else loader.dataset
        runner._parts.train_loader = runner.train_loop.dataloader = loader
        runner.checkpointer.note_parts()
        runner.run("train")

    run(tmp_path / "whole")
    whole, seen[:] = list(seen), []
    run(tmp_path / "cut", StopAt(stop_at))
    run(tmp_path / "cut", resume="auto")
    assert seen == whole
    ends = [load_checkpoint(tmp_path / name / "iter_9.pth") for name in ("whole", "cut")]
    assert repr(ends[0]["beside"]) == repr(ends[1]["beside"])


@pytest.mark.parametrize(
    ("num_workers", "by_epoch", "what", "times"),
    [
        (1, False, "level", 1),
        (1, True, "level", 0),
        (0, False, "level", 0),
        (1, False, "shared", 0),
    ],
)
@pytest.mark.parametrize("is_of_the_user", [True, False])
def test_a_change_in_mid_epoch_that_workers_do_not_see_is_told_once(
    make_runner, caplog, is_of_the_user, num_workers, by_epoch, what, times
):
    class Levels(TinyData):
        def __init__(self):
            super().__init__()
            self.level, self.shared = 0, multiprocessing.Value("d", 0.0)

    class Up(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.change(not by_epoch)

        def after_train_epoch(self, runner):
            self.change(by_epoch)

        def change(self, is_to_change):
            data.level += is_to_change and what == "level"
            data.shared.value += is_to_change and what == "shared"

    data = Levels()
    options = {"num_workers": num_workers}
    if num_workers:
        options["multiprocessing_context"] = "fork"
    if is_of_the_user:
        loader = BatchStream(DataLoader(data, batch_size=8, **options))
    else:
        loader = WorkerLoader(data, BatchSampler(24, 8, seed=1, shuffle=True), **options)
    hooks = {"up": Up(), "checkpoint": CheckpointHook(interval=2, by_epoch=False)}
    runner = make_runner(hooks, max_epochs=2, val_size=0)
    runner._parts.train_loader = runner.train_loop.dataloader = loader
    runner.checkpointer.note_parts()
    runner.run("train")
    loader.close()
    told = [message for message in caplog.messages if "in mid-epoch" in message]
    assert len(told) == times
    assert all(message.startswith("data.train.level was changed in mid-epoch") for message in told)


def settings_of(data_set, reads=()):
    loader = SimpleNamespace(dataset=data_set, reads=SimpleNamespace(keys=set(reads)))
    settings = DataSettings({"data.train": loader})
    settings.begin()
    return settings


def test_only_what_has_changed_is_held():
    data = Hard()
    settings = settings_of(data)
    assert settings.state_dict() == {}
    data.transforms[0].strength = 0.5
    assert settings.state_dict() == {"data.train": {"transforms.0": {"strength": [0.5, False]}}}


def test_what_cannot_be_held_is_told_once(caplog):
    data = Hard()
    data.transform = data.targets
    settings = settings_of(data)
    data.transform, data.level = threading.Lock(), 2
    for _ in range(2):
        assert settings.state_dict() == {"data.train": {"": {"level": [2, False]}}}
    (message,) = caplog.messages
    assert message.startswith("data.train.transform (lock) is set in training and is in no check")


def test_data_that_is_replaced_is_held_unless_it_is_very_much(caplog):
    data = Hard()
    settings = settings_of(data)
    data.targets = torch.zeros(5000, 1)
    data.inputs = torch.zeros(1).expand(2**23)
    (held,) = settings.state_dict()["data.train"].values()
    assert [*held] == ["targets"] and held["targets"][0] is not None
    assert caplog.messages[0].startswith("data.train.inputs (Tensor) is set in training")


class Opens(Hard):
    """A file with the first sample; counts and caches with each."""

    def __init__(self):
        super().__init__()
        self.file = self.is_open = None
        self.known, self.level, self.counts = {}, 0, torch.zeros(24)

    def __getitem__(self, index):
        if self.file is None:
            self.file, self.is_open = threading.Lock(), True
        self.num_read += 1
        self.known[index] = 1.0
        self.counts[index] += 1
        return super().__getitem__(index)


@pytest.mark.parametrize("make", [None, by_sample, of_the_users])
def test_what_reading_samples_changes_is_not_held(make_runner, tmp_path, caplog, make):
    class Up(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            data.level += 1

    hooks = {"up": Up(), "checkpoint": CheckpointHook(by_epoch=False)}
    runner = make_runner(hooks, work_dir=tmp_path, max_epochs=2, val_size=0)
    data = Opens()
    loader = runner.train_dataloader if make is None else make(data)
    loader.dataset = data
    runner._parts.train_loader = runner.train_loop.dataloader = loader
    runner.checkpointer.note_parts()
    runner.run("train")
    for name, level in (("iter_1.pth", 1), ("iter_3.pth", 3)):
        (held,) = load_checkpoint(tmp_path / name)["beside"]["data"]
        assert held == {"data.train": {"": {"level": [level, False]}}}
    assert "is set in training" not in caplog.text


def test_a_list_that_another_has_too_stays_that_list():
    def make():
        data = Hard()
        data.active = [0]
        return data, data.active, settings_of(data)

    data, _, settings = make()
    data.active.append(1)
    state = settings.state_dict()
    data, ours, settings = make()
    settings.load_state_dict(state)
    assert data.active is ours == [0, 1]


def test_what_is_no_longer_there_is_told(caplog):
    settings_of(Hard()).load_state_dict({"data.train": {"gone": {"strength": [1.0, False]}}})
    settings_of(Hard()).load_state_dict({"data.other": {"": {"strength": [1.0, False]}}})
    assert caplog.messages == [
        "data.train.gone.strength is not what it was in the checkpoint, and begins anew",
        "data.other.strength is not what it was in the checkpoint, and begins anew",
    ]


def test_what_a_recipe_sets_by_the_position_is_not_held(make_runner):
    recipe = SwitchRecipeHook([{"iter": 1, "data": {"transforms.0.strength": 0.5}}])
    runner = make_runner({"recipe": recipe, "harder": Harder(True)}, max_epochs=1)
    runner.train_dataloader.dataset = Hard()
    runner.checkpointer.note_parts()
    runner.run("train")
    (held,) = runner.checkpointer.beside.state_dict()["data"]
    assert [*held["data.train"]["transforms.0"]] == ["shares", "steps", "shared", "table"]


class Stream(IterableDataset):
    def __iter__(self):
        self.passes = getattr(self, "passes", 0) + 1
        yield from range(3)


class Stateful(TinyData):
    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        raise AssertionError("it is asked by nobody here")


@pytest.mark.parametrize("make", [Stream, Stateful, lambda: [torch.zeros(2)], lambda: None])
def test_what_is_no_map_style_data_set_or_has_a_state_is_left_alone(make):
    data = make()
    settings = settings_of(data)
    if hasattr(data, "__dict__"):
        data.passes = 3
    assert settings.state_dict() == {}

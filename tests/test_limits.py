"""Quick looks: fewer batches, with lengths, schedules and times left that know of it."""

from __future__ import annotations

import pytest
from fakes import TinyData
from hydra import compose
from torch.utils.data import DataLoader, Dataset, IterableDataset

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_runner
from hookexp.compose.conf_dir import with_hydra
from hookexp.data.loader import BatchStream
from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.settings import TrainerSettings

HERE = __name__


class BySample(Dataset):
    def __init__(self):
        self.data = TinyData(24)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]


class Stream(IterableDataset):
    def __iter__(self):
        data = TinyData(24)
        return iter([data[i] for i in range(24)])


def ready_batches():
    return DataLoader(BySample(), batch_size=4)


class Trace(Hook):
    """How many batches each mode has seen, and which."""

    def __init__(self):
        self.seen = {"train": 0, "val": 0, "test": 0}
        self.firsts = []
        self.etas = []

    def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, mode="train"):
        self.seen[mode] += 1
        if mode == "train":
            self.firsts.append(data_batch[0][0, 0].item())
            self.etas += [g() for k, g in runner.message_hub.gauges.items() if k == "train/eta"]


def runner_of(tmp_path, *overrides, source="fakes.TinyData"):
    with with_hydra():
        base = ["trainer.device=cpu", "sinks=none", f"+hooks.trace._target_={HERE}.Trace"]
        cfg = compose("config", overrides=[*base, *overrides])
    cfg.model = {"_target_": "fakes.TinyModel"}
    cfg.task = {"_target_": "fakes.TinyTask"}
    cfg.data.batch_size = 4
    for split in ("train", "val", "test"):
        cfg.data[split] = {"_target_": source}
    return build_runner(cfg, tmp_path, ("train", "val", "test"))


SOURCES = ["fakes.TinyData", f"{HERE}.BySample", f"{HERE}.ready_batches"]


@pytest.mark.parametrize("source", SOURCES)
def test_limits_of_each_mode(tmp_path, source):
    limits = [f"trainer.limit_{m}_batches={n}" for m, n in (("train", 2), ("val", 1), ("test", 3))]
    runner = runner_of(tmp_path, "trainer.max_epochs=3", *limits, source=source)
    assert (runner.max_iters, runner.num_batches_per_epoch) == (6, 2)
    assert (len(runner.val_dataloader), len(runner.test_dataloader)) == (1, 3)
    runner.run("train")
    assert runner.iter == 6
    trace = runner.hooks["trace"]
    assert trace.etas[-1] == 0
    assert all(eta > 0 for eta in trace.etas[:-1])
    assert runner.optimizer.param_groups[0]["lr"] < 1e-6
    runner.run("test")
    assert trace.seen == {"train": 6, "val": 3, "test": 3}


@pytest.mark.parametrize("source", SOURCES)
def test_a_limit_above_what_there_is_changes_nothing(tmp_path, source):
    runner = runner_of(tmp_path, "trainer.limit_train_batches=99", source=source)
    assert runner.num_batches_per_epoch == 6


@pytest.mark.parametrize("source", [*SOURCES, f"{HERE}.Stream"])
def test_by_iterations_each_pass_is_limited(tmp_path, source):
    limits = ["trainer.limit_train_batches=2", "trainer.max_iters=5", "data.shuffle=false"]
    runner = runner_of(tmp_path, *limits, source=source)
    assert runner.max_iters == 5
    runner.run("train")
    firsts = runner.hooks["trace"].firsts
    assert firsts == [firsts[0], firsts[1]] * 2 + [firsts[0]]
    assert firsts[0] != firsts[1]


def test_a_stream_without_a_length_is_limited_too(tmp_path):
    limit = "trainer.limit_train_batches=2"
    schedule = "param_scheduler=none"
    runner = runner_of(tmp_path, limit, schedule, "trainer.max_epochs=2", source=f"{HERE}.Stream")
    assert isinstance(runner.train_dataloader, BatchStream)
    assert runner.max_iters is None
    runner.run("train")
    assert runner.hooks["trace"].seen["train"] == 4


def test_overfitting_sees_the_same_batches_in_each_epoch(tmp_path):
    runner = runner_of(tmp_path, "trainer.overfit_batches=2", "trainer.max_epochs=3")
    runner.run("train")
    trace = runner.hooks["trace"]
    assert trace.firsts == trace.firsts[:2] * 3
    assert trace.seen == {"train": 6, "val": 6, "test": 0}
    plain = runner_of(tmp_path, "trainer.limit_train_batches=2", "trainer.max_epochs=3")
    plain.run("train")
    firsts = plain.hooks["trace"].firsts
    assert firsts[:2] != firsts[2:4]


@pytest.mark.parametrize(
    ("overrides", "seen"),
    [
        (["trainer.fast_dev_run=true"], {"train": 1, "val": 1, "test": 1}),
        (["trainer.fast_dev_run=2"], {"train": 2, "val": 2, "test": 2}),
        (["trainer.fast_dev_run=1", "trainer.max_epochs=50"], {"train": 1, "val": 1, "test": 1}),
        (["trainer.fast_dev_run=2", "trainer.max_iters=500"], {"train": 2, "val": 2, "test": 2}),
        (
            ["trainer.fast_dev_run=1", "trainer.overfit_batches=3"],
            {"train": 1, "val": 1, "test": 1},
        ),
    ],
)
def test_a_fast_run_of_everything(tmp_path, overrides, seen):
    runner = runner_of(tmp_path, *overrides)
    assert runner.run("train").status == "finished"
    runner.run("test")
    assert runner.hooks["trace"].seen == seen
    assert runner.max_iters == seen["train"]
    assert list(tmp_path.glob("*.pth"))


@pytest.mark.parametrize("mode", ["train", "val"])
def test_two_limits_of_the_same_batches_are_refused(mode):
    limit = f"limit_{mode}_batches"
    with pytest.raises(ConfigError) as caught:
        TrainerSettings(overfit_batches=2, **{limit: 5}).spelled_out()
    assert str(caught.value) == (
        f"trainer.overfit_batches=2 and trainer.{limit}=5 are both given; a run trains and "
        "validates on as many batches as the first says: set the other to null"
    )
    same = TrainerSettings(overfit_batches=2, **{limit: 2}, limit_test_batches=1).spelled_out()
    assert [same.limit_of(mode) for mode in ("train", "val", "test")] == [2, 2, 1]


def test_limits_are_off_by_default():
    settings = TrainerSettings()
    assert settings.spelled_out() == settings
    assert [settings.limit_of(mode) for mode in ("train", "val", "test")] == [None] * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"limit_train_batches": 0}, r"trainer\.limit_train_batches=0: use a whole number, 1 or m"),
        ({"limit_val_batches": 0.5}, r"trainer\.limit_val_batches=0\.5: use a whole number"),
        ({"overfit_batches": True}, r"trainer\.overfit_batches=True: use a whole number"),
        ({"fast_dev_run": "yes"}, r"trainer\.fast_dev_run=yes: use true, false, or how many"),
        ({"fast_dev_run": -1}, r"trainer\.fast_dev_run=-1"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        TrainerSettings(**arguments)

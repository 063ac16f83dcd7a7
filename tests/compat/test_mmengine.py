"""MMEngine's own hooks, unmodified, in place of ours in real runs."""

from __future__ import annotations

import warnings

import pytest
import torch
from fakes import Recorder, TinyTask
from hydra import compose

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mmengine")
    import mmengine.hooks
    from mmengine.runner import EpochBasedTrainLoop
    from mmengine.runner import Runner as PublishedRunner

import hookexp.app
from hookexp.build import build_hooks
from hookexp.checkpoint.reading import load_checkpoint
from hookexp.compose.conf_dir import with_hydra
from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.ema import EMAHook
from hookexp.hooks.param_scheduler import ParamSchedulerHook
from hookexp.optim.param_schedulers import LinearParamScheduler, ReduceOnPlateauParamScheduler

# Its modules use what newer versions of torch and Python call deprecated.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


class Weights(Hook):
    """The weights each evaluation sees."""

    priority = 100

    def __init__(self):
        self.evaluated = []
        self.lrs = []

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.evaluated.append(runner.model.inner.weight.clone())

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.lrs.append(runner.optimizer.param_groups[0]["lr"])


def test_its_hooks_come_in_by_target():
    names = {
        "ema": "EMAHook",
        "iter_timer": "IterTimerHook",
        "empty_cache": "EmptyCacheHook",
        "param_scheduler": "ParamSchedulerHook",
        "checkpoint": "CheckpointHook",
    }
    overrides = ["hooks=-iter_timer-param_scheduler-checkpoint"]
    overrides += [f"++hooks.{n}={{_target_: mmengine.hooks.{c}}}" for n, c in names.items()]
    with with_hydra():
        hooks = build_hooks(compose("config", overrides=overrides[1:]))
    found = {entry.name: entry for entry in hooks.entries}
    for name, class_name in names.items():
        assert type(found[name].hook) is getattr(mmengine.hooks, class_name)
    assert found["param_scheduler"].priority == 70
    assert "before_val_epoch" in found["ema"].stages
    assert "after_test_iter" in found["iter_timer"].stages


def test_ema_averages_as_ours_does(make_runner, tmp_path):
    theirs, ours = Weights(), Weights()
    make_runner(
        {"ema": mmengine.hooks.EMAHook(momentum=0.1), "weights": theirs},
        work_dir=tmp_path / "theirs",
        max_epochs=2,
    ).run("train")
    make_runner(
        {"ema": EMAHook(momentum=0.1), "weights": ours}, work_dir=tmp_path / "ours", max_epochs=2
    ).run("train")
    for mine, published in zip(ours.evaluated, theirs.evaluated, strict=True):
        assert torch.allclose(mine, published, atol=1e-6)


def test_ema_is_resumed(make_runner, tmp_path):
    def run(folder, **more):
        hooks = {"ema": mmengine.hooks.EMAHook(momentum=0.1), "checkpoint": CheckpointHook()}
        make_runner(hooks, work_dir=tmp_path / folder, **more).run("train")

    run("whole", max_epochs=2)
    run("parts", max_epochs=1)
    run("parts", max_epochs=2, resume="auto")
    one = load_checkpoint(tmp_path / "whole" / "epoch_2.pth")
    two = load_checkpoint(tmp_path / "parts" / "epoch_2.pth")
    for part in ("state_dict", "ema_state_dict"):
        assert one[part].keys() == two[part].keys()
        assert all(torch.equal(one[part][key], two[part][key]) for key in one[part])
    assert int(two["ema_state_dict"]["steps"]) == 6


def test_iter_timer_and_empty_cache(make_runner):
    hooks = {
        "iter_timer": mmengine.hooks.IterTimerHook(),
        "empty_cache": mmengine.hooks.EmptyCacheHook(before_epoch=True, after_iter=True),
    }
    runner = make_runner(hooks, max_epochs=2)
    runner.run("train")
    runner.run("test")
    hub = runner.message_hub
    assert len(hub.get_scalar("train/time").values) == 6
    assert len(hub.get_scalar("test/data_time").values) == 1
    assert hub.get_info("eta") == 0


def test_early_stopping_stops(make_runner):
    stop = mmengine.hooks.EarlyStoppingHook(monitor="accuracy", patience=1, min_delta=0.1)
    task = TinyTask(scripted_accuracy=[0.5, 0.9, 0.9, 0.9])
    runner = make_runner({"early_stopping": stop}, task=task, max_epochs=4)
    summary = runner.run("train")
    assert (runner.epoch, summary.status) == (3, "stopped")
    make_runner({"early_stopping": mmengine.hooks.EarlyStoppingHook(monitor="loss")}).run("val")


@pytest.mark.parametrize("by_epoch", [True, False])
def test_param_scheduler_drives_the_schedules_as_ours_does(make_runner, by_epoch):
    lrs = []
    for hook in (mmengine.hooks.ParamSchedulerHook(), ParamSchedulerHook()):
        weights = Weights()
        warmup = LinearParamScheduler(start_factor=0.1, end=3, by_epoch=by_epoch)
        runner = make_runner(
            {"param_scheduler": hook, "weights": weights},
            param_schedulers={"warmup": warmup},
            max_epochs=4,
        )
        runner.run("train")
        lrs.append(weights.lrs)
    assert lrs[0] == lrs[1]
    assert lrs[0][0] == pytest.approx(0.01)
    assert lrs[0][-1] == pytest.approx(0.1)


def test_param_scheduler_feeds_a_plateau_once(make_runner):
    lrs = []
    for hook in (mmengine.hooks.ParamSchedulerHook(), ParamSchedulerHook()):
        weights = Weights()
        plateaus = {
            name: ReduceOnPlateauParamScheduler(monitor="accuracy", rule="greater", patience=1)
            for name in ("one", "two")
        }
        runner = make_runner(
            {"param_scheduler": hook, "weights": weights},
            task=TinyTask(scripted_accuracy=[0.9, 0.5, 0.5, 0.5, 0.5]),
            param_schedulers=plateaus,
            max_epochs=5,
        )
        runner.run("train")
        lrs.append(weights.lrs)
    assert lrs[0] == lrs[1]
    assert lrs[0][-1] < lrs[0][0]


def test_checkpoint_saves_keeps_and_finds_the_best(make_runner, tmp_path):
    hook = mmengine.hooks.CheckpointHook(
        interval=1, max_keep_ckpts=2, save_best="accuracy", rule="greater"
    )
    task = TinyTask(scripted_accuracy=[0.5, 0.9, 0.7])
    runner = make_runner({"checkpoint": hook}, task=task, max_epochs=3)
    runner.run("train")
    names = sorted(path.name for path in runner.work_dir.glob("*.pth"))
    assert names == ["best_accuracy_epoch_2.pth", "epoch_2.pth", "epoch_3.pth"]
    assert runner.writer.store.newest() == runner.work_dir / "epoch_3.pth"

    task = TinyTask(scripted_accuracy=[0.7, 0.8, 0.95])
    again = mmengine.hooks.CheckpointHook(
        interval=1, max_keep_ckpts=2, save_best="accuracy", rule="greater"
    )
    rest = make_runner({"checkpoint": again}, task=task, max_epochs=5, resume="auto")
    rest.run("train")
    names = sorted(path.name for path in runner.work_dir.glob("*.pth"))
    assert names == ["best_accuracy_epoch_5.pth", "epoch_4.pth", "epoch_5.pth"]


def test_checkpoint_in_a_folder_of_its_own(make_runner, tmp_path):
    hook = mmengine.hooks.CheckpointHook(interval=2, by_epoch=False, out_dir=str(tmp_path / "o"))
    make_runner({"checkpoint": hook}, max_iters=5, work_dir=tmp_path / "r").run("train")
    names = sorted(path.name for path in (tmp_path / "o" / "r").glob("*.pth"))
    assert names == ["iter_2.pth", "iter_4.pth", "iter_5.pth"]


def test_runtime_info_and_logger(make_runner):
    class Shelf(hookexp.sink.Sink):
        def __init__(self):
            self.rows = []

        def log_scalars(self, scalars, step, point):
            self.rows.append((point.mode, step, sorted(scalars)))

    shelf = Shelf()
    hooks = {
        "runtime_info": mmengine.hooks.RuntimeInfoHook(),
        "iter_timer": mmengine.hooks.IterTimerHook(),
        "logger": mmengine.hooks.LoggerHook(interval=3),
    }
    runner = make_runner(hooks, sinks={"shelf": shelf}, max_epochs=2)
    runner.run("train")
    assert ("train", 3, ["data_time", "loss", "lr", "time"]) in shelf.rows
    assert [row[:2] for row in shelf.rows if row[0] == "val"] == [("val", 1), ("val", 2)]
    assert "loss" in shelf.rows[-1][2]


def test_what_asks_for_classes_is_answered(make_runner):
    seen = {}

    class Asks(mmengine.hooks.Hook):
        def before_train(self, runner):
            seen["runner"] = isinstance(runner, PublishedRunner)
            seen["loop"] = isinstance(runner.train_loop, EpochBasedTrainLoop)
            seen["hub"] = isinstance(runner.message_hub, mmengine.logging.MessageHub)
            seen["folder"] = isinstance(runner.work_dir, str)
            seen["same"] = self.last is runner

        def before_run(self, runner):
            self.last = runner

    recorder = Recorder()
    runner = make_runner({"asks": Asks(), "recorder": recorder}, max_epochs=1)
    runner.run("train")
    assert all(seen.values()), seen
    assert not isinstance(runner, PublishedRunner)

"""The order of mount points, with the epoch and iteration a hook sees: compared with golden files.

After a deliberate change: `python -m pytest tests/test_loops.py --golden-update`.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from fakes import Recorder, TinyTask

from hookexp.data.loader import BatchStream
from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook

GOLDEN = Path(__file__).parent / "golden"


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("two_epochs", {"max_epochs": 2}),
        ("five_iterations", {"max_iters": 5, "val_interval": 3}),
        ("validation_first", {"max_epochs": 1, "val_begin": 0}),
    ],
)
def test_order_of_mount_points(make_runner, request, name, settings):
    recorder = Recorder()
    make_runner({"recorder": recorder, "saver": _Saver()}, **settings).run("train")
    lines = [f"{point} epoch={epoch} iter={it}" for point, epoch, it in recorder.calls]
    text = "\n".join(lines) + "\n"
    path = GOLDEN / f"{name}.txt"
    if request.config.getoption("--golden-update"):
        path.write_text(text)
    assert text == path.read_text()


@pytest.mark.parametrize("mode", ["val", "test"])
def test_an_evaluation_fires_its_own_points_only(make_runner, mode):
    recorder = Recorder()
    make_runner({"recorder": recorder}, max_epochs=1).run(mode)
    assert recorder.points == [
        "before_run",
        f"before_{mode}",
        f"before_{mode}_epoch",
        f"before_{mode}_iter",
        f"after_{mode}_iter",
        f"after_{mode}_epoch",
        f"after_{mode}",
        "after_run",
    ]


def test_a_failing_hook_is_named_and_the_run_is_ended_properly(make_runner):
    recorder = Recorder()
    runner = make_runner({"recorder": recorder, "bomb": _Bomb()}, max_epochs=2)
    with pytest.raises(RuntimeError, match="boom") as caught:
        runner.run("train")
    assert any(
        "hook 'bomb' (_Bomb) at after_train_iter, epoch 1, iter 4" in note
        for note in caught.value.__notes__
    )
    assert recorder.points[-2:] == ["on_exception", "after_run"]


def test_an_error_in_a_clean_up_does_not_hide_the_first(make_runner, caplog):
    recorder = Recorder()
    runner = make_runner({"bomb": _Bomb(), "bad": _BadCleanUp(), "recorder": recorder})
    with pytest.raises(RuntimeError, match="boom"):
        runner.run("train")
    assert recorder.points[-2:] == ["on_exception", "after_run"]
    assert "clean-up failed" in caplog.text


def test_a_stop_in_mid_epoch_leaves_the_epoch_unfinished(make_runner):
    recorder = Recorder()
    runner = make_runner({"stopper": _Stopper(at_iter=4), "recorder": recorder}, max_epochs=3)
    summary = runner.run("train")
    assert summary.status == "stopped"
    assert (runner.epoch, runner.iter) == (1, 5)
    assert recorder.points.count("after_train_epoch") == 1
    assert recorder.points[-2:] == ["after_train", "after_run"]


def test_a_stop_asked_for_by_the_published_name(make_runner):
    runner = make_runner({"stopper": _StopByAttribute()}, max_epochs=9)
    runner.run("train")
    assert runner.epoch == 2


def test_validation_runs_in_eval_mode_and_training_goes_on_in_train_mode(make_runner):
    modes = []

    class Watch(Hook):
        def before_val_iter(self, runner, batch_idx, data_batch=None):
            modes.append(("val", runner.model.training))

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            modes.append(("train", runner.model.training))

    make_runner({"watch": Watch()}, max_epochs=2).run("train")
    assert set(modes) == {("val", False), ("train", True)}


def test_the_best_value_of_the_objective_is_kept(make_runner):
    task = TinyTask(scripted_accuracy=[0.5, 0.9, 0.7])
    summary = make_runner(task=task, max_epochs=3).run("train")
    assert summary.objective_value == pytest.approx(0.9)
    assert (summary.objective.epoch, summary.objective.iter) == (2, 6)


@pytest.mark.parametrize(
    ("budget", "message"),
    [({"max_epochs": 2}, "no batch in epoch 2"), ({"max_iters": 4}, "no more batches after 2")],
)
def test_data_that_can_be_read_only_once_is_told(make_runner, budget, message):
    runner = make_runner(**budget)
    batch = (torch.zeros(2, 4), torch.zeros(2, 1))
    runner.train_loop.dataloader = BatchStream(iter([batch, batch]), endless=not runner.by_epoch)
    with pytest.raises(ConfigError, match=message):
        runner.run("train")


def test_a_stop_at_the_very_end_is_no_early_stop(make_runner):
    class StopInLastValidation(Hook):
        def after_val(self, runner):
            if runner.epoch == 2:
                runner.state.stop("enough")

    summary = make_runner({"stop": StopInLastValidation()}, max_epochs=2).run("train")
    assert (summary.status, summary.reason) == ("finished", "")


class _Saver(Hook):
    """Asks for a checkpoint at each end of an epoch."""

    def after_train_epoch(self, runner):
        runner.save_checkpoint(f"epoch_{runner.epoch + 1}.pth")


class _Bomb(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 4:
            raise RuntimeError("boom")


class _BadCleanUp(Hook):
    def on_exception(self, runner, error):
        raise OSError("clean-up failed")


class _Stopper(Hook):
    def __init__(self, at_iter):
        self.at_iter = at_iter

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == self.at_iter:
            runner.state.stop("enough")


class _StopByAttribute(Hook):
    def after_train_epoch(self, runner):
        if runner.epoch == 1:
            runner.train_loop.stop_training = True


def test_a_test_after_training_is_of_what_was_trained(make_runner, tmp_path, caplog):
    make_runner({"checkpoint": CheckpointHook()}, max_epochs=1, work_dir=tmp_path / "a").run(
        "train"
    )
    caplog.clear()
    for start in ({"load_from": str(tmp_path / "a")}, {"resume": str(tmp_path / "a")}, {}):
        hooks, folder = {"checkpoint": CheckpointHook()}, tmp_path / "_".join(("b", *start))
        runner = make_runner(hooks, max_epochs=2, work_dir=folder, **start)
        runner.run("train")
        trained = copy.deepcopy(runner.model.state_dict())
        runner.run("test")
        tested = runner.model.state_dict()
        assert all(torch.equal(tested[name], trained[name]) for name in trained)
    assert "initialisation" not in caplog.text


def test_an_evaluation_in_which_a_rank_has_no_batch_is_refused_by_all_of_them(
    make_runner, monkeypatch
):
    monkeypatch.setattr("hookexp.stop_together.dist.gather", lambda value: [value, 0])
    with pytest.raises(ConfigError, match=r"^data\.val: rank 1 has no batch .* 1, 0;"):
        make_runner().run("val")

"""What MMEngine's own hook tests assert, and a line of ours makes different on purpose.

Its test files run with its hook classes on our runner, but for the rows of `CHANGED`. Each row has
a test here of what happens instead, by its name.
"""

from __future__ import annotations

import logging
from typing import NamedTuple

import numpy as np
import pytest
import torch
from fakes import TinyModel, TinyTask

from hookexp.checkpoint.reading import load_checkpoint
from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.early_stopping import EarlyStoppingHook
from hookexp.hooks.ema import EMAHook
from hookexp.hooks.iter_timer import IterTimerHook
from hookexp.hooks.logger import LoggerHook
from hookexp.hooks.param_scheduler import ParamSchedulerHook
from hookexp.hooks.prepare_tta import PrepareTTAHook
from hookexp.hooks.profiler import ProfilerHook
from hookexp.hooks.runtime_info import RuntimeInfoHook
from hookexp.optim.param_schedulers import ConstantParamScheduler


class Changed(NamedTuple):
    asserted: str
    """In MMEngine's tests."""
    reason: str
    test: str
    """Of what happens instead."""


CHANGED = (
    Changed(
        "CheckpointHook: best_ckpt, last_ckpt and last_checkpoint hold absolute paths",
        "relative names, so that a folder that was moved still resumes",
        "test_records_are_names_in_the_folder",
    ),
    Changed(
        "CheckpointHook: a file is there when after_val_epoch or after_train_epoch returns",
        "hooks ask and the loop saves at its safe point, when all hooks have run",
        "test_a_checkpoint_is_asked_for",
    ),
    Changed(
        "CheckpointHook: a best state is also saved as epoch_5.pth at interval=2",
        "a new best saves no checkpoint off the interval beside its own",
        "test_records_are_names_in_the_folder",
    ),
    Changed(
        "CheckpointHook: keep_ckpt_ids and best_ckpt stand in message_hub.runtime_info of a file",
        "a hook's state stands under its name, in plain types; infos stand in message_hub.infos",
        "test_records_are_names_in_the_folder",
    ),
    Changed(
        "CheckpointHook: without metrics save_best warns",
        "a metric that is missing is an error that lists those there are",
        "test_save_best_without_the_metric_is_an_error",
    ),
    Changed(
        "CheckpointHook, LoggerHook: file_client_args, backend_args, file_client",
        "files are written, flushed and renamed on a local disk; upload carries them elsewhere",
        "test_storage_backends_are_no_parameters",
    ),
    Changed(
        "EMAHook: loading another model's checkpoint warns; begin_epoch past the end is refused",
        "another model is an error before anything is loaded; a run cut short still runs, warned",
        "test_ema_of_another_model_and_of_a_short_run",
    ),
    Changed(
        "EMAHook: a checkpoint has averages from the first iteration on, whatever begin_epoch",
        "averages are saved once there are any",
        "test_ema_of_another_model_and_of_a_short_run",
    ),
    Changed(
        "EarlyStoppingHook: best_score begins at an infinity; patience=0 is allowed",
        "no score yet is None in the checkpoint; 0 would mean what 1 means",
        "test_early_stopping_begins_without_a_score",
    ),
    Changed(
        "EarlyStoppingHook: a run that only validates stops too",
        "without training there is nothing to stop",
        "test_early_stopping_begins_without_a_score",
    ),
    Changed(
        "IterTimerHook: data_time is the clock's distance from after_iter to before_iter",
        "the loop stamps the fetch, so a validation or a save is not charged to the next batch",
        "test_what_hooks_do_between_batches_is_no_data_time",
    ),
    Changed(
        "IterTimerHook: eta is an info of the hub, also in evaluations",
        "a number computed when it is read, of the training that is left",
        "test_what_hooks_do_between_batches_is_no_data_time",
    ),
    Changed(
        "LoggerHook: wrong parameters raise TypeError; out_dir without a file client",
        "a wrong value is a ValueError with what is allowed",
        "test_wrong_values_are_value_errors",
    ),
    Changed(
        "LoggerHook: scalars go to vis_data/<timestamp>.json below the log folder",
        "scalars.jsonl stands at the top of the run's folder and is continued by a resume",
        "test_scalars_stand_at_the_top",
    ),
    Changed(
        "ParamSchedulerHook: calls step() of each scheduler, in after_train_iter or _epoch",
        "values are functions of the position, written after an optimizer step",
        "test_a_schedule_is_a_function_of_the_position",
    ),
    Changed(
        "ConstantLR, LinearLR, PolyLR reach their end at end - 1, and end is max_epochs if unset",
        "torch's numbers: the last value before `end` is the schedule's, and no end is no end",
        "test_a_schedule_is_a_function_of_the_position",
    ),
    Changed(
        "PrepareTTAHook: takes tta_cfg, a model class that is built around the model",
        "transforms and merge; the model stays the object it is and is put back",
        "test_test_time_augmentation_puts_the_model_back",
    ),
    Changed(
        "ProfilerHook: profiles from before_run on; profile_times past the run's end is refused",
        "profiling begins with training; a shorter run profiles what there is",
        "test_a_profile_begins_with_training",
    ),
    Changed(
        "RuntimeInfoHook: train/<name>.lr is the first group of each optimizer; loop_stage",
        "every parameter group is logged; which loop is calling is runner.mode",
        "test_every_groups_rate_is_logged",
    ),
)


@pytest.mark.parametrize("row", CHANGED, ids=lambda row: row.test)
def test_every_row_has_its_test(row):
    assert callable(globals()[row.test])


def test_records_are_names_in_the_folder(make_runner):
    task = TinyTask(scripted_accuracy=[0.5, 0.7, 0.9, 0.1, 0.1])
    hook = CheckpointHook(interval=2, max_keep_ckpts=2, save_best="accuracy", greater_keys="accur")
    assert hook.greater_keys == ("accur",)
    runner = make_runner({"checkpoint": hook}, task=task, max_epochs=5)
    runner.run("train")
    names = sorted(path.name for path in runner.work_dir.glob("*.pth"))
    assert names == ["best_accuracy_epoch_3.pth", "epoch_4.pth", "epoch_5.pth"]
    assert (runner.work_dir / "last_checkpoint").read_text().splitlines()[0] == "epoch_5.pth"
    infos = load_checkpoint(runner.work_dir / "epoch_5.pth")["message_hub"]["infos"]
    assert infos["last_ckpt"] == "epoch_5.pth"
    assert infos["best_ckpt"] == "best_accuracy_epoch_3.pth"
    assert infos["best_score"] == pytest.approx(0.9)
    states = load_checkpoint(runner.work_dir / "epoch_5.pth")["hooks"]
    assert states["checkpoint"]["kept"] == ["epoch_4.pth", "epoch_5.pth"]


def test_several_best_records_carry_their_metric(make_runner):
    hook = CheckpointHook(interval=-1, save_best=["accuracy", "loss"])
    runner = make_runner({"checkpoint": hook}, max_epochs=1)
    runner.run("train")
    infos = runner.message_hub.infos
    assert infos["best_ckpt_accuracy"] == "best_accuracy_epoch_1.pth"
    assert infos["best_score_loss"] > 0
    assert "best_score" not in infos


def test_a_checkpoint_is_asked_for(make_runner):
    seen = []

    class Looks(Hook):
        priority = "LOWEST"

        def after_train_epoch(self, runner):
            seen.append((runner.work_dir / "epoch_1.pth").exists())

    runner = make_runner({"checkpoint": CheckpointHook(), "looks": Looks()}, max_epochs=1)
    runner.run("train")
    assert seen == [False]
    assert (runner.work_dir / "epoch_1.pth").exists()


def test_save_best_without_the_metric_is_an_error(make_runner):
    runner = make_runner({"checkpoint": CheckpointHook(save_best="recall", rule="greater")})
    with pytest.raises(ValueError, match=r"save_best=recall: .* there are: accuracy, loss"):
        runner.run("train")


def test_storage_backends_are_no_parameters():
    for make in (CheckpointHook, LoggerHook):
        with pytest.raises(TypeError, match="backend_args"):
            make(backend_args={"backend": "petrel"})


def test_ema_of_another_model_and_of_a_short_run(make_runner, tmp_path, caplog):
    hooks = {"ema": EMAHook(begin_epoch=3), "checkpoint": CheckpointHook()}
    with caplog.at_level(logging.WARNING, logger="hookexp"):
        make_runner(hooks, max_epochs=1).run("train")
    assert "hooks.ema.begin_epoch=3: the run ends at 1" in caplog.text
    path = tmp_path / "run" / "epoch_1.pth"
    assert "ema_state_dict" not in load_checkpoint(path)
    with pytest.raises(ConfigError, match="of another model; nothing was loaded"):
        make_runner({"ema": EMAHook()}, model=TinyModel(5), load_from=str(path)).run("test")


def test_early_stopping_begins_without_a_score(make_runner):
    hook = EarlyStoppingHook(monitor="loss", stopping_threshold=1e9)
    assert hook.state_dict()["best_score"] is None
    with pytest.raises(ValueError, match="patience=0: use a whole number, 1 or more"):
        EarlyStoppingHook(monitor="loss", patience=0)
    assert make_runner({"early_stopping": hook}).run("val").status == "finished"
    assert make_runner({"early_stopping": hook}, max_epochs=3).run("train").status == "stopped"


def test_what_hooks_do_between_batches_is_no_data_time(make_runner):
    stamps = []

    class Looks(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            stamps.append(runner.clock.ended - runner.clock.began)

    runner = make_runner({"iter_timer": IterTimerHook(), "looks": Looks()}, max_epochs=1)
    runner.run("train")
    assert list(runner.message_hub.get_scalar("train/data_time").values) == stamps
    assert runner.message_hub.get_info("eta") is None
    assert "train/eta" in runner.message_hub.gauges


def test_wrong_values_are_value_errors():
    for interval in ("100", 0, True):
        with pytest.raises(ValueError, match=f"interval={interval}: use a whole number"):
            LoggerHook(interval=interval)


def test_scalars_stand_at_the_top(make_runner):
    from hookexp.sinks.jsonl import JsonlSink

    hooks = {"runtime_info": RuntimeInfoHook(), "logger": LoggerHook(interval=1)}
    runner = make_runner(hooks, sinks={"jsonl": JsonlSink()}, max_epochs=1)
    runner.run("train")
    assert len((runner.work_dir / "scalars.jsonl").read_text().splitlines()) == 3 + 1


def test_a_schedule_is_a_function_of_the_position(make_runner):
    lrs = []

    class Looks(Hook):
        def before_train_epoch(self, runner):
            lrs.append(runner.optimizer.param_groups[0]["lr"])

    schedulers = {
        "ended": ConstantParamScheduler(factor=0.5, end=2),
        "endless": ConstantParamScheduler(factor=0.5, begin=1),
    }
    hooks = {"param_scheduler": ParamSchedulerHook(), "looks": Looks()}
    make_runner(hooks, param_schedulers=schedulers, max_epochs=4).run("train")
    assert lrs == pytest.approx([0.05, 0.025, 0.05, 0.05])
    one = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=0.1)
    of_torch = torch.optim.lr_scheduler.ConstantLR(one, factor=0.5, total_iters=2)
    held = []
    for _ in range(3):
        held.append(of_torch.get_last_lr()[0])
        one.step()
        of_torch.step()
    assert held == pytest.approx([0.05, 0.05, 0.1])


def test_test_time_augmentation_puts_the_model_back(make_runner):
    model = TinyModel()
    hook = PrepareTTAHook(transforms=[torch.nn.Identity(), torch.neg])
    runner = make_runner({"prepare_tta": hook}, model=model)
    runner.run("test")
    assert runner.model is model and "forward" not in vars(model)


def test_a_profile_begins_with_training(make_runner):
    hook = ProfilerHook(profile_times=100, on_trace_ready=None)
    runner = make_runner({"profiler": hook}, max_epochs=1)
    runner.hooks.before_run(runner)
    assert hook._profiler is None
    assert runner.run("train").status == "finished"


def test_every_groups_rate_is_logged(make_runner):
    class Returns(TinyTask):
        def train_step(self, model, batch):
            return {**super().train_step(model, batch), "share": np.float32(0.25)}

    runner = make_runner({"runtime_info": RuntimeInfoHook()}, task=Returns(), max_epochs=1)
    bias = runner.model.outer.bias
    group = runner.optimizer.param_groups[0]
    group["params"] = [p for p in group["params"] if p is not bias]
    runner.optimizer.add_param_group({"params": [bias], "lr": 0.3})
    runner.run("train")
    hub = runner.message_hub
    assert hub.get_scalar("train/lr").current() == pytest.approx(0.1)
    assert hub.get_scalar("train/lr/1").current() == pytest.approx(0.3)
    assert hub.get_scalar("train/share").current() == 0.25
    assert "loop_stage" not in hub.infos

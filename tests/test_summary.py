"""How a run says what it came to."""

from __future__ import annotations

import json
import math
import os
import shlex

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from hookexp.errors import ConfigError
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.summary import Objective, Summary, choose_objective


def summary(**changes):
    values = {
        "status": "finished",
        "reason": "",
        "objective": Objective("accuracy", "greater", 0.5, epoch=2, iter=40),
        "metrics": {"accuracy": 0.4},
        "epoch": 3,
        "iter": 60,
        "seconds": 75.0,
    }
    return Summary(**{**values, **changes})


def test_the_file_is_valid_json(tmp_path):
    summary(metrics={"accuracy": 0.4, "loss": math.nan}).write(tmp_path)
    content = json.loads((tmp_path / "summary.json").read_text())
    assert content["objective"] == {
        "name": "accuracy",
        "rule": "greater",
        "value": 0.5,
        "epoch": 2,
        "iter": 40,
    }
    assert content["metrics"] == {"accuracy": 0.4, "loss": None}
    assert [p.name for p in tmp_path.iterdir()] == ["summary.json"]


def test_a_run_that_is_over_is_known_by_its_summary(tmp_path):
    assert Summary.of_run_that_is_over(tmp_path, 3, None) is None
    over = summary(max_epochs=3, is_final=True)
    over.write(tmp_path)
    assert Summary.of_run_that_is_over(tmp_path, 4, None) is None
    found = Summary.of_run_that_is_over(tmp_path, 3, None)
    assert found is not None
    assert found.objective_value == 0.5
    assert found.describe(tmp_path) == over.describe(tmp_path)
    summary(max_epochs=3, status="stopped", reason="SIGTERM").write(tmp_path)
    assert Summary.of_run_that_is_over(tmp_path, 3, None) is None
    (tmp_path / "summary.json").write_text("{")
    assert Summary.of_run_that_is_over(tmp_path, 3, None) is None


def test_an_evaluation_leaves_the_summary_of_a_training_run_alone(tmp_path):
    (tmp_path / "last_checkpoint").write_text("")
    summary().write(tmp_path)
    summary(epoch=0).write(tmp_path, "test")
    assert json.loads((tmp_path / "summary.json").read_text())["epoch"] == 3
    assert json.loads((tmp_path / "summary_test.json").read_text())["epoch"] == 0


def test_the_best_checkpoint_is_what_to_test(tmp_path):
    (tmp_path / "last_checkpoint").write_text("")
    (tmp_path / "best_accuracy_epoch_2.pth").write_text("")
    lines = summary().describe(tmp_path)
    assert any(line.endswith("best_accuracy_epoch_2.pth") for line in lines)


@pytest.mark.parametrize(
    ("metric", "best", "others"),
    [
        ("acc", "best_acc_epoch_2.pth", ["best_acc_top5_epoch_7.pth", "best_acc_epoch_x.pth"]),
        ("acc", "best_acc_iter_40.pth", ["best_acc_iter_40.pth.tmp", "best_acc_epoch_7_iter.pth"]),
        ("val/acc", "best_val_acc_epoch_2.pth", ["best_val_acc_5_epoch_7.pth"]),
        ("acc[0]", "best_acc_0__epoch_2.pth", ["best_acc0_epoch_7.pth"]),
    ],
)
def test_the_best_checkpoint_is_that_of_the_objective_alone(tmp_path, metric, best, others):
    for time, name in enumerate(["last_checkpoint", best, *others]):
        (tmp_path / name).write_text("")
        os.utime(tmp_path / name, (time, time))
    lines = summary(objective=Objective(metric, "greater", 0.5, 2, 40)).describe(tmp_path)
    (test_it,) = [line for line in lines if line.startswith("test it")]
    assert test_it.endswith(f"/{best}")


def test_what_a_user_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "run"
    folder.mkdir()
    assert summary().describe(folder) == [
        "finished after 1:15 min, epoch 3, iteration 60",
        "best accuracy 0.5000 at epoch 2, iteration 40",
        "folder run",
    ]
    (folder / "last_checkpoint").write_text("")
    (folder / "events.out.tfevents.1").write_text("")
    stopped = summary(status="stopped", reason="enough", epoch=0, seconds=7300.0)
    assert stopped.describe(folder) == [
        "stopped: enough after 2:01:40 h, iteration 60",
        "best accuracy 0.5000 at epoch 2, iteration 40",
        "folder run",
        "test it: python -m hookexp mode=test load_from=run",
        "curves:  tensorboard --logdir run",
    ]


@pytest.mark.parametrize(
    ("seconds", "shown"), [(59.94, "59.9 s"), (59.96, "1:00 min"), (3599.8, "1:00:00 h")]
)
def test_a_time_is_rounded_before_it_is_told_in_minutes(tmp_path, seconds, shown):
    (line, *_) = summary(seconds=seconds).describe(tmp_path)
    assert line.startswith(f"finished after {shown},")


@pytest.mark.parametrize("name", ["out a=b", "ü", "w, {x}", "it's", "a\\b"])
def test_a_path_is_typed_as_hydra_reads_it(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / name
    folder.mkdir()
    (folder / "last_checkpoint").write_text("")
    (test_it,) = [line for line in summary().describe(folder) if line.startswith("test it")]
    parsed = OverridesParser.create().parse_overrides(shlex.split(test_it)[-1:])
    assert parsed[0].value() == name


@pytest.mark.parametrize(("exit_code", "is_final"), [(143, False), (143, True), (0, False)])
def test_how_to_continue_what_a_signal_stopped(tmp_path, monkeypatch, exit_code, is_final):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last_checkpoint").write_text("")
    typed = "hooks=+ema resume=x.pth 'name=a b'"
    ended = summary(status="stopped", reason="SIGTERM", exit_code=exit_code, is_final=is_final)
    lines = ended.describe(tmp_path / "run", words_of_a_training=typed)
    told = [line for line in lines if line.startswith("continue it: ")]
    command = "python -m hookexp hooks=+ema 'name=a b' hydra.run.dir=run resume=auto"
    assert told == [f"continue it: {command}"] * (exit_code > 0 and not is_final)


@pytest.mark.parametrize(
    ("ranks", "here", "launcher"),
    [
        ("4", "4", "torchrun --nproc-per-node 4"),
        ("8", "4", "torchrun --nnodes 2 --nproc-per-node 4"),
    ],
)
def test_several_ranks_are_continued_as_many(tmp_path, monkeypatch, ranks, here, launcher):
    monkeypatch.setenv("WORLD_SIZE", ranks)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", here)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "last_checkpoint").write_text("")
    lines = summary(status="stopped", exit_code=143).describe(tmp_path / "run")
    assert f"continue it: {launcher} -m hookexp hydra.run.dir=run resume=auto" in lines


def test_checkpoints_in_another_folder_are_those_to_go_on_with(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kept = tmp_path / "kept" / "run"
    kept.mkdir(parents=True)
    (kept / "last_checkpoint").write_text("")
    ended = summary(reason="SIGTERM", exit_code=143, checkpoints_in=str(kept))
    typed = "hooks.checkpoint.out_dir=kept"
    assert ended.describe(tmp_path / "run", words_of_a_training=typed)[-2:] == [
        "test it: python -m hookexp mode=test load_from=kept/run",
        f"continue it: python -m hookexp {typed} hydra.run.dir=run resume=auto",
    ]


def test_a_run_says_where_its_checkpoints_are(make_runner, tmp_path):
    hook = CheckpointHook(out_dir=str(tmp_path / "kept"))
    elsewhere = make_runner({"checkpoint": hook}, max_epochs=1).run("train")
    assert elsewhere.checkpoints_in == str(tmp_path / "kept" / "run")
    own = make_runner({"checkpoint": CheckpointHook()}, max_epochs=1).run("train")
    assert own.checkpoints_in == ""


def test_a_metric_that_is_no_number_is_told(tmp_path):
    lines = summary(metrics={"loss": math.nan}).describe(tmp_path)
    assert any("check_invalid_loss" in line for line in lines)


def test_the_command_to_test_it_names_what_the_run_was_made_of(tmp_path):
    (tmp_path / "last_checkpoint").write_text("")
    lines = summary().describe(tmp_path, "--config-dir mine model=net mode=val")
    assert any("hookexp --config-dir mine model=net mode=val load_from=" in n for n in lines)


def test_a_command_to_paste_is_quoted(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "my run"
    folder.mkdir()
    for name in ("last_checkpoint", "events.out.tfevents.1"):
        (folder / name).write_text("")
    test_it, curves = summary().describe(folder)[-2:]
    assert shlex.split(test_it)[-1] == "load_from=my run"
    assert shlex.split(curves)[-1] == "my run"


def test_there_is_no_command_where_there_is_no_data_for_it(tmp_path):
    (tmp_path / "last_checkpoint").write_text("")
    assert not any("hookexp" in line for line in summary().describe(tmp_path, ""))


def test_a_run_without_a_number_returns_none():
    assert summary(objective=None).objective_value is None
    assert summary(objective=Objective("loss", "less")).objective_value is None
    assert summary().objective_value == 0.5


@pytest.mark.parametrize(
    ("setting", "names", "chosen"),
    [
        ("auto", ("accuracy", "loss"), ("accuracy", "greater")),
        ("auto", ("perplexity", "loss"), ("loss", "less")),
        ("loss", ("accuracy", "loss"), ("loss", "less")),
        ("auto", ("perplexity",), None),
        ("auto", (), None),
    ],
)
def test_which_metric_a_run_is_judged_by(setting, names, chosen):
    objective = choose_objective(setting, names, {})
    assert (objective and (objective.name, objective.rule)) == chosen


def test_a_metric_that_is_not_there():
    with pytest.raises(ConfigError, match=r"trainer\.objective=f1: .*it has: accuracy, loss"):
        choose_objective("f1", ("accuracy", "loss"), {})


def test_an_objective_of_a_task_that_names_no_metrics():
    with pytest.raises(ConfigError, match=r'objective=f1: .*write metric_names = \("f1",\) into'):
        choose_objective("f1", (), {})


def test_an_objective_whose_direction_nobody_tells_is_refused():
    with pytest.raises(ConfigError, match=r"objective=f1: .*hooks\.checkpoint\.rule=greater"):
        choose_objective("f1", ("f1", "accuracy"), {})


@pytest.mark.parametrize("setting", ["auto", "f1"])
def test_the_objective_is_what_the_best_checkpoint_is_kept_by(setting):
    names, rules = ("f1", "accuracy"), {"f1": "less"}
    assert choose_objective(setting, names, rules) == Objective("f1", "less")
    assert choose_objective("accuracy", names, rules) == Objective("accuracy", "greater")


def test_an_objective_keeps_its_best():
    objective = Objective("loss", "less")
    for iteration, value in enumerate([0.5, math.nan, 0.3, 0.4], start=1):
        objective.update({"loss": value}, epoch=0, iteration=iteration)
    objective.update({"other": 0.0}, epoch=0, iteration=9)
    assert (objective.value, objective.iter) == (0.3, 3)

"""When training ends early, in real runs with scripted metrics."""

from __future__ import annotations

import math

import pytest
from fakes import TinyTask

from hookexp.checkpoint.reading import load_checkpoint
from hookexp.errors import ConfigError
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.early_stopping import EarlyStoppingHook


def train(make_runner, accuracy, *, hooks=None, **arguments):
    hook = EarlyStoppingHook(**{"monitor": "accuracy", **arguments})
    runner = make_runner(
        {"early_stopping": hook, **(hooks or {})},
        task=TinyTask(scripted_accuracy=accuracy),
        train_size=8,
        max_epochs=len(accuracy),
    )
    return runner, runner.run("train")


@pytest.mark.parametrize(
    ("accuracy", "arguments", "stops_after"),
    [
        ([0.1, 0.5, 0.4, 0.3, 0.6, 0.7], {"patience": 2}, 4),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], {"patience": 2}, None),
        ([0.5, 0.5, 0.5, 0.5, 0.9, 0.9], {"patience": 3}, 4),
        ([0.50, 0.55, 0.58, 0.9, 0.9, 0.9], {"patience": 2, "min_delta": 0.1}, 3),
        ([0.5, 0.4, 0.3, 0.3, 0.3, 0.3], {"patience": 2, "rule": "less"}, 5),
        ([0.5, math.nan, 0.9, 0.9, 0.9, 0.9], {}, 2),
        ([0.5, math.nan, 0.9, 0.95, 0.99, 1.0], {"check_finite": False}, None),
        ([0.5, 0.8, 0.96, 0.9, 0.9, 0.9], {"stopping_threshold": 0.95}, 3),
    ],
)
def test_after_how_many_validations_it_stops(make_runner, accuracy, arguments, stops_after):
    runner, summary = train(make_runner, accuracy, **arguments)
    assert runner.epoch == (stops_after or len(accuracy))
    assert summary.status == ("finished" if stops_after is None else "stopped")
    assert ("accuracy" in summary.reason) == (stops_after is not None)


def test_the_stop_still_saves_the_last_state(make_runner):
    checkpoint = CheckpointHook(interval=10)
    runner, _ = train(
        make_runner, [0.5, 0.4, 0.3, 0.2], hooks={"checkpoint": checkpoint}, patience=1
    )
    assert load_checkpoint(runner.work_dir / "epoch_2.pth")["loop"]["epoch"] == 2


def test_best_and_count_go_on_after_a_resume(make_runner):
    hooks = {"checkpoint": CheckpointHook()}
    train(make_runner, [0.9, 0.5], hooks=hooks, patience=3)
    hook = EarlyStoppingHook("accuracy", patience=3)
    runner = make_runner(
        {"early_stopping": hook, "checkpoint": CheckpointHook()},
        task=TinyTask(scripted_accuracy=[0.6] * 5),
        train_size=8,
        max_epochs=7,
        resume="auto",
    )
    runner.run("train")
    # The newest checkpoint is from before the second validation, which is run again.
    assert runner.epoch == 4
    assert hook.best_score == pytest.approx(0.9)


def test_a_validation_only_run_ignores_it(make_runner):
    hook = EarlyStoppingHook("accuracy", patience=1)
    make_runner({"early_stopping": hook}).run("val")
    assert hook.best_score is None


def test_a_missing_metric_warns_once_or_is_an_error(make_runner, caplog):
    runner, _ = train(make_runner, [0.5, 0.5], monitor="top-1")
    assert caplog.text.count("no such metric; there are: accuracy, loss") == 1
    assert runner.epoch == 2
    with pytest.raises(ConfigError, match="there are: accuracy, loss"):
        train(make_runner, [0.5, 0.5], monitor="top-1", strict=True)


def test_a_wrong_metric_is_told_before_the_run():
    with pytest.raises(ValueError, match="monitor=f1: there is no such metric"):
        EarlyStoppingHook("f1").check_metrics(("accuracy",))
    with pytest.raises(ValueError, match="set rule to greater or less"):
        EarlyStoppingHook("f1").check_metrics(("f1",))
    EarlyStoppingHook("f1", rule="greater").check_metrics(("f1",))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"monitor": ""}, "monitor=''"),
        ({"monitor": "accuracy", "patience": 0}, "patience=0: use a whole number"),
        ({"monitor": "accuracy", "rule": "max"}, "use greater or less"),
        ({"monitor": "accuracy", "min_delta": -1}, "min_delta=-1"),
        ({"monitor": "accuracy", "stopping_threshold": math.inf}, "stopping_threshold=inf"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EarlyStoppingHook(**arguments)

"""Real runs against a clock that the test moves on."""

from __future__ import annotations

import time

import pytest
from fakes import Recorder

from hookexp.hook import Hook
from hookexp.hooks import time_limit
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.time_limit import TimeLimitHook


class Clock(Hook):
    """Each training batch takes a minute; so does each validation batch."""

    def __init__(self):
        self.minutes = 0

    def _before_iter(self, runner, batch_idx, data_batch=None, mode="train"):
        self.minutes += 1


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()

    class FakeTime:
        monotonic = staticmethod(lambda: 1000.0 + 60 * clock.minutes)

        def __getattr__(self, name):
            return getattr(time, name)

    monkeypatch.setattr(time_limit, "time", FakeTime())
    return clock


def run(make_runner, clock, hook, **more):
    recorder = Recorder()
    hooks = {"time_limit": hook, "checkpoint": CheckpointHook(interval=-1)}
    runner = make_runner(
        {**hooks, "clock": clock, "recorder": recorder}, **{"max_epochs": 5, **more}
    )
    runner.run("train")
    return runner, recorder


def test_the_run_stops_after_the_batch_at_which_the_time_is_over_and_saves(make_runner, clock):
    # An epoch is three minutes of training and one of validation.
    runner, recorder = run(make_runner, clock, TimeLimitHook(minutes=6))
    assert runner.iter == 5
    assert runner.state.stop_reason == "time limit: 6.0 of 6 minutes have passed"
    assert (runner.work_dir / "last_checkpoint").read_text().startswith("iter_5.pth")
    assert recorder.points[-2:] == ["before_save_checkpoint", "after_run"]


def test_a_validation_that_is_due_is_left_to_the_resumed_run(make_runner, clock, tmp_path):
    length = {"max_epochs": None, "max_iters": 6, "val_interval": 2}
    runner, recorder = run(make_runner, clock, TimeLimitHook(minutes=2), **length)
    assert runner.iter == 2
    assert "before_val" not in recorder.points
    clock.minutes = 0
    hook, folder = TimeLimitHook(minutes=100), str(runner.work_dir)
    whole, recorder = run(make_runner, clock, hook, resume=folder, **length)
    assert whole.iter == 6
    assert recorder.points.count("after_val") == 3


def test_the_time_is_over_in_a_validation(make_runner, clock):
    runner, recorder = run(make_runner, clock, TimeLimitHook(minutes=4), val_size=24)
    assert runner.iter == 3
    assert "4.0 of 4 minutes" in runner.state.stop_reason
    assert recorder.points.count("after_val_iter") == 1
    assert "after_val" not in recorder.points


def test_the_reason_of_an_earlier_stop_stays(make_runner, clock):
    class Stop(Hook):
        priority = "HIGHEST"

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            runner.state.stop("enough")

    runner = make_runner(
        {"time_limit": TimeLimitHook(minutes=0.5), "clock": clock, "stop": Stop()}, max_epochs=5
    )
    runner.run("train")
    assert runner.state.stop_reason == "enough"
    assert not runner.state.stop_is_urgent


def test_a_run_in_time_is_not_touched(make_runner, clock):
    runner, _ = run(make_runner, clock, TimeLimitHook(minutes=100))
    assert runner.iter == 15
    assert runner.state.stop_reason == ""


def test_a_test_run_is_not_touched(make_runner, clock):
    runner = make_runner({"time_limit": TimeLimitHook(minutes=0.1), "clock": clock})
    runner.run("test")
    assert runner.state.stop_reason == ""


def test_since_process_counts_what_was_before_the_run(make_runner):
    age = time_limit._process_age()
    began = time.monotonic()
    assert age > time.process_time() * 0.5 > 0
    assert time_limit._process_age() >= age
    hook = TimeLimitHook(minutes=age / 60, since="process")
    runner = make_runner({"time_limit": hook}, max_epochs=5)
    runner.run("train")
    assert runner.iter == 1
    assert time.monotonic() >= began


def test_the_age_of_a_process_where_the_system_does_not_tell(monkeypatch):
    monkeypatch.setattr(time_limit, "STAT_FILE", time_limit.Path("/nowhere"))
    assert 0 < time_limit._process_age() <= time.process_time()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"minutes": 0}, "minutes=0: use a number above 0"),
        ({"minutes": 1, "since": "now"}, "since=now: use run or process"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        TimeLimitHook(**arguments)

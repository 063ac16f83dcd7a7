"""Shares of the time by a clock that only the parts of a run move, so that they are exact."""

from __future__ import annotations

import json
import logging
import math
import statistics
from collections import Counter
from dataclasses import asdict
from types import SimpleNamespace

import pytest
from fakes import TinyData

from hookexp import host_time
from hookexp.hook import Hook, Priority
from hookexp.host_time import HostTime, Shares

TIMED = 8
"""The second timed iteration of a run of 100."""
TIMED_OF_1000 = 30
"""One of the timed iterations of a run of 1000."""


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the start; a part of the run that takes time adds to them."""
    clock = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(host_time, "perf_counter", lambda: clock.seconds)
    monkeypatch.setattr("hookexp.loops.perf_counter", lambda: clock.seconds)
    return clock


class Taking(Hook):
    """Takes some seconds in each training iteration, at the end of training and around the run."""

    def __init__(self, clock, per_iter=0.0, at_end=0.0, around=0.0, fires=None, trains=False):
        self.clock, self.per_iter, self.at_end, self.fires = clock, per_iter, at_end, fires
        self.around, self.trains = around, trains

    def before_run(self, runner):
        self.clock.seconds += self.around

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.fires:
            self.fires(runner)
        self.clock.seconds += self.per_iter

    def after_train(self, runner):
        self.clock.seconds += self.at_end

    def after_run(self, runner):
        self.clock.seconds += self.around


class Inner(Hook):
    """Takes a second inside the mount point that another hook opens."""

    priority = Priority.LOW

    def __init__(self, clock):
        self.clock = clock

    def before_optim_step(self, runner):
        self.clock.seconds += 1.0


class SlowData(TinyData):
    def __init__(self, clock, size):
        super().__init__(size)
        self.clock = clock

    def get_batch(self, indices, generator):
        self.clock.seconds += 4.0
        return super().get_batch(indices, generator)


def shares_of(runner) -> Shares:
    return runner.host_time.shares(runner.iter, runner.hooks.that_train())


def test_each_hundred_has_one_timed_iteration_and_ten_in_a_row_meet_each_last_digit():
    samples = samples_of(HostTime(), 0, None, count=100)
    assert [sample // 100 for sample in samples] == list(range(100))
    assert {sample % 10 for sample in samples[:10]} == set(range(10))
    digits = Counter(sample % 10 for sample in samples)
    assert min(digits.values()) >= 8


def test_a_short_run_is_timed_more_often():
    assert samples_of(HostTime(), 0, 10, count=10) == list(range(10))
    samples = samples_of(HostTime(), 0, 230, count=20)
    assert [sample // 11 for sample in samples] == list(range(20))


def test_a_run_that_goes_on_in_mid_hundred_times_no_iteration_before_it():
    assert samples_of(HostTime(), 62, None, count=1) == [123]  # that of the first hundred was 61
    assert samples_of(HostTime(), 61, None, count=1) == [61]


def samples_of(timer, iteration, max_iters, count):
    timer.begin(iteration, max_iters)
    samples = [timer.next_iter]
    while len(samples) < count:
        timer._schedule(timer.next_iter + 1)
        samples.append(timer.next_iter)
    return samples


def test_shares_of_data_hooks_and_training_add_up_to_the_whole(make_runner, clock):
    step = Taking(clock, per_iter=2.0, trains=True, fires=lambda runner: runner.optimizer_step())
    hooks = {
        "step": step,
        "inner": Inner(clock),
        "slow": Taking(clock, per_iter=3.0),
        "at_end": Taking(clock, at_end=1000.0, around=5000.0),
    }
    data = SlowData(clock, 2000)
    runner = make_runner(
        hooks, data=data, batch_size=4, max_iters=1100, with_optimizer=False, val_size=0
    )
    summary = runner.run("train")
    total = 1100 * (4 + 2 + 1 + 3) + 1000
    shares = summary.host_time
    assert shares.iterations_timed == 20
    assert shares.data == pytest.approx(4 * 1100 / total)
    assert shares.training_hooks == {"step": pytest.approx(2 * 1100 / total)}
    assert shares.hooks["slow"] == pytest.approx(3 * 1100 / total)
    assert shares.hooks["inner"] == pytest.approx(1 * 1100 / total)
    assert shares.hooks["at_end"] == pytest.approx(1000 / total)
    assert list(shares.hooks)[:2] == ["slow", "inner"]
    assert shares.data + sum(shares.hooks.values()) + shares.training_hooks["step"] == (
        pytest.approx(1.0)
    )
    written = json.loads((runner.work_dir / "summary.json").read_text())
    assert written["host_time"] == asdict(shares)


def test_a_hook_over_its_budget_is_warned_about_and_the_training_is_not(make_runner, clock, caplog):
    hooks = {
        "step": Taking(clock, per_iter=5.0, trains=True),
        "slow": Taking(clock, per_iter=4.0),
        "quick": Taking(clock, per_iter=1.0),
    }
    with caplog.at_level(logging.INFO, "hookexp"):
        make_runner(hooks, max_iters=1000, hook_budget=0.2, val_size=0).run("train")
    warnings = [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 1
    assert warnings[0].startswith("hook 'slow' took 40 % of the host's time")
    assert "trainer.hook_budget=0.2" in warnings[0] and "hooks=-slow" in warnings[0]
    line = "host time: data 0.0 %, hooks 50 % (slow 40 %, quick 10 %)"
    assert line in [r.getMessage() for r in caplog.records]


@pytest.mark.parametrize(("slow", "warned"), [([TIMED_OF_1000], 0), (range(0, 1000, 10), 1)])
def test_one_slow_moment_that_was_timed_is_not_warned_about(
    make_runner, clock, caplog, slow, warned
):
    def moment(runner):
        clock.seconds += 1.0 if runner.iter in slow else 0.0

    hooks = {
        "step": Taking(clock, per_iter=0.1, trains=True),
        "slow": Taking(clock, fires=moment),
    }
    runner = make_runner(hooks, max_iters=1000, hook_budget=0.05, val_size=0)
    summary = runner.run("train")
    assert summary.host_time.iterations_timed == 20
    assert summary.host_time.hooks["slow"] > 0.3
    assert caplog.text.count("hook 'slow' took") == warned


@pytest.mark.parametrize(
    ("slow", "long", "warned"),
    [
        ({"per_iter": 0.001}, False, 1),
        ({"at_end": 1.0}, False, 0),
        ({"at_end": 1.0}, True, 1),
    ],
)
def test_what_happens_once_is_judged_in_long_runs_alone(
    make_runner, clock, caplog, slow, long, warned
):
    hooks = {
        "step": Taking(clock, per_iter=0.01 if long else 0.001, trains=True),
        "slow": Taking(clock, **slow),
    }
    make_runner(hooks, max_iters=1000, hook_budget=0.05, val_size=0).run("train")
    assert caplog.text.count("hook 'slow' took") == warned


def test_the_error_of_a_share_is_that_of_a_sample(make_runner, clock):
    seconds = iter([1.0, 3.0] * 10)
    hooks = {"slow": Taking(clock, fires=lambda runner: tick(clock, next(seconds)))}
    shares = make_runner(hooks, max_iters=20, val_size=0).run("train").host_time
    assert shares.iterations_timed == 20
    assert shares.hooks["slow"] == pytest.approx(1.0)
    deviation = statistics.stdev([1.0, 3.0] * 10)
    assert shares.hook_errors["slow"] == pytest.approx(deviation / math.sqrt(20) / 2.0)


def tick(clock, seconds):
    clock.seconds += seconds


def test_too_few_timed_iterations_say_nothing(make_runner, clock, caplog):
    hooks = {"slow": Taking(clock, per_iter=4.0)}
    with caplog.at_level(logging.INFO, "hookexp"):
        runner = make_runner(hooks, max_iters=9, val_size=0)
        runner.run("train")
    assert shares_of(runner).iterations_timed == 9
    assert "host time" not in caplog.text


def test_an_iteration_that_is_not_timed_takes_the_plain_path(make_runner):
    seen = []

    class Looks(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen.append(runner.hooks.after_train_iter)

    make_runner({"looks": Looks()}, max_iters=100, val_size=0).run("train")
    plain = seen[0]
    timed = [i for i, call in enumerate(seen) if call is not plain]
    assert timed == samples_of(HostTime(), 0, 100, count=20)


def test_a_hook_that_is_registered_in_a_timed_iteration_is_called_in_the_next(make_runner):
    class Late(Hook):
        calls = 0

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self.calls += 1

    late = Late()

    class Registers(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == TIMED:
                runner.register_hook(late, name="late")

    make_runner({"registers": Registers()}, max_iters=100, val_size=0).run("train")
    assert late.calls == 99 - TIMED


def test_an_error_in_a_timed_iteration_names_the_hook(make_runner):
    class Fails(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == TIMED:
                raise RuntimeError("here")

    with pytest.raises(RuntimeError, match="here") as error:
        make_runner({"fails": Fails()}, max_iters=100, val_size=0).run("train")
    assert f"in hook 'fails' (Fails) at after_train_iter, epoch 0, iter {TIMED}" in "".join(
        error.value.__notes__
    )


@pytest.mark.parametrize("budget", [0, 1.5, "5%", True])
def test_a_budget_is_a_share(make_runner, budget):
    with pytest.raises(ValueError, match=r"trainer\.hook_budget="):
        make_runner(hook_budget=budget)

"""What is charged to an iteration, by a clock that the tests move."""

from __future__ import annotations

import pytest
import torch

from hookexp.hook import Hook, Priority
from hookexp.hooks.iter_timer import IterTimerHook


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]

    def tick():
        now[0] += 1.0
        return now[0]

    monkeypatch.setattr("hookexp.loops.perf_counter", tick)
    monkeypatch.setattr("hookexp.hooks.iter_timer.perf_counter", tick)
    return now


def test_a_time_between_batches_is_not_charged_to_the_next(make_runner, clock):
    class Slow(Hook):
        priority = Priority.LOWEST

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            clock[0] += 1000.0

    runner = make_runner({"iter_timer": IterTimerHook(), "slow": Slow()}, max_epochs=1)
    runner.run("train")
    hub = runner.message_hub
    assert list(hub.get_scalar("train/data_time").values) == [1.0, 1.0, 1.0]
    assert list(hub.get_scalar("train/time").values) == [2.0, 2.0, 2.0]


def test_time_includes_the_data_and_the_work(make_runner, clock):
    class Work(Hook):
        priority = Priority.VERY_HIGH

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            clock[0] += 10.0

    runner = make_runner({"iter_timer": IterTimerHook(), "work": Work()}, max_epochs=1)
    runner.run("train")
    assert list(runner.message_hub.get_scalar("train/time").values) == [12.0, 12.0, 12.0]


def test_eta_is_what_the_run_took_so_far_times_what_is_left(make_runner, clock):
    etas = []

    class Read(Hook):
        priority = Priority.LOWEST

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            etas.append(runner.message_hub.read("train/", 1)["eta"])

    class Steady(Hook):
        priority = Priority.HIGHEST

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            clock[0] += 96.0

    hooks = {"iter_timer": IterTimerHook(), "read": Read(), "steady": Steady()}
    make_runner(hooks, max_epochs=2, val_size=0).run("train")
    assert etas == [
        500.0,
        400.0,
        300.0,
        pytest.approx(200.0, abs=2),
        pytest.approx(100.0, abs=2),
        0.0,
    ]


def test_an_evaluation_has_times_of_its_own(make_runner, clock):
    runner = make_runner({"iter_timer": IterTimerHook()}, max_epochs=2, val_size=16)
    runner.run("train")
    assert list(runner.message_hub.get_scalar("val/time").values) == [2.0, 2.0]
    assert "memory" not in runner.message_hub.read("train/", 1)


def test_a_validation_is_not_charged_to_the_batch_after_it(make_runner, clock):
    class Slow(Hook):
        def after_val(self, runner):
            clock[0] += 1000.0

    hooks = {"iter_timer": IterTimerHook(), "slow": Slow()}
    runner = make_runner(hooks, max_iters=4, val_interval=2)
    runner.run("train")
    assert list(runner.message_hub.get_scalar("train/time").values) == [2.0] * 4
    assert list(runner.message_hub.get_scalar("train/data_time").values) == [1.0] * 4


def test_on_a_gpu_the_peak_memory_can_be_read(make_runner, monkeypatch):
    """The function that is called there, where there may be none."""

    class OnGpu(Hook):
        priority = Priority.HIGHEST

        def before_run(self, runner):
            runner.device = torch.device("cuda")

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3 * 2**20)
    runner = make_runner({"gpu": OnGpu(), "iter_timer": IterTimerHook()}, max_epochs=1)
    runner.run("train")
    assert runner.message_hub.read("train/", 1)["memory"] == 3.0

"""When schedulers step: by optimizer steps, by epochs, and after a validation."""

from __future__ import annotations

import pytest
from fakes import TinyTask

from hookexp.hook import Hook, Priority
from hookexp.hooks.optimizer import OptimizerHook
from hookexp.hooks.param_scheduler import ParamSchedulerHook
from hookexp.hooks.runtime_info import RuntimeInfoHook
from hookexp.optim.param_schedulers import (
    LinearParamScheduler,
    ReduceOnPlateauParamScheduler,
    StepParamScheduler,
)


class UsedLr(Hook):
    """The lr each step is made with."""

    priority = Priority.LOWEST

    def __init__(self):
        self.lrs = []

    def before_optim_step(self, runner):
        self.lrs.append(runner.optim_wrapper.get_lr()["lr"][0])


def train(make_runner, scheduler, **settings):
    used = UsedLr()
    hooks = {
        "runtime_info": RuntimeInfoHook(),
        "optimizer": settings.pop("optimizer", OptimizerHook()),
        "param_scheduler": ParamSchedulerHook(),
        "used": used,
    }
    runner = make_runner(
        hooks, with_optimizer=False, param_schedulers={"one": scheduler}, **settings
    )
    runner.run("train")
    return used.lrs, runner


def test_by_steps(make_runner):
    linear = LinearParamScheduler(start_factor=0.5, end_factor=1.0, end=4, by_epoch=False)
    lrs, runner = train(make_runner, linear, max_epochs=2)
    assert lrs == pytest.approx([0.05, 0.0625, 0.075, 0.0875, 0.1, 0.1])
    logged = runner.message_hub.get_scalar("train/lr").values
    assert list(logged) == pytest.approx(lrs)


def test_by_epochs(make_runner):
    step = StepParamScheduler(step_size=1, gamma=0.1, by_epoch=True)
    lrs, _ = train(make_runner, step, max_epochs=3)
    assert lrs == pytest.approx([0.1] * 3 + [0.01] * 3 + [0.001] * 3)


def test_an_accumulation_window_is_one_step(make_runner):
    linear = LinearParamScheduler(start_factor=0.5, end_factor=1.0, by_epoch=False)
    lrs, _ = train(make_runner, linear, max_epochs=2, optimizer=OptimizerHook(cumulative_iters=2))
    assert len(lrs) == 3
    assert lrs == pytest.approx([0.05, 0.05 + 0.05 / 3, 0.05 + 0.1 / 3])


def test_a_plateau_follows_the_validations(make_runner):
    plateau = ReduceOnPlateauParamScheduler(
        monitor="accuracy", rule="greater", factor=0.1, patience=0
    )
    lrs, _ = train(
        make_runner,
        plateau,
        max_epochs=4,
        train_size=8,
        task=TinyTask(scripted_accuracy=[0.5, 0.4, 0.6, 0.7]),
    )
    assert lrs == pytest.approx([0.1, 0.1, 0.01, 0.01])


def test_a_validation_only_run_leaves_the_values_alone(make_runner):
    plateau = ReduceOnPlateauParamScheduler(monitor="accuracy", rule="greater", patience=0)
    runner = make_runner(
        {"param_scheduler": ParamSchedulerHook()}, param_schedulers={"one": plateau}
    )
    runner.run("val")
    assert runner.optim_wrapper.get_lr() == {"lr": [0.1]}

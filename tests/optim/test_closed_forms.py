"""Each curve against torch's scheduler of the same name, over a whole run, value by value."""

from __future__ import annotations

import logging
import math

import pytest
import torch
from torch.optim import lr_scheduler

from hookexp.optim import param_schedulers as ps

STEPS = 40


def sgd(*lrs):
    """An SGD optimizer with one parameter group for each learning rate."""
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in lrs]
    return torch.optim.SGD(groups, lr=1.0, momentum=0.9)


def values_of_ours(schedulers, lrs=(0.1, 0.02), key="lr", steps=STEPS):
    """The values of every group at positions 0 to `steps`."""
    optimizer = sgd(*lrs)
    bound = ps.ParamSchedulers(schedulers)
    bound.bind({"default": optimizer}, None, steps)
    values = []
    for step in range(steps + 1):
        bound.update(0, step)
        values.append([group[key] for group in optimizer.param_groups])
    return values


def values_of_torch(make, lrs=(0.1, 0.02), key="lr", steps=STEPS):
    optimizer = sgd(*lrs)
    scheduler = make(optimizer)
    values = []
    for step in range(steps + 1):
        values.append([group[key] for group in optimizer.param_groups])
        if step < steps:
            optimizer.step()
            scheduler.step()
    return values


def assert_close(ours, theirs):
    assert len(ours) == len(theirs)
    for step, (our, their) in enumerate(zip(ours, theirs, strict=True)):
        assert our == pytest.approx(their, rel=1e-9, abs=1e-13), f"position {step}"


def one_cycle(cls=lr_scheduler.OneCycleLR, **kwargs):
    return lambda o: cls(o, max_lr=0.4, total_steps=STEPS + 1, **kwargs)


CASES = {
    "constant": (
        ps.ConstantParamScheduler(factor=0.25, end=10),
        lambda o: lr_scheduler.ConstantLR(o, factor=0.25, total_iters=10),
    ),
    "linear": (
        ps.LinearParamScheduler(start_factor=0.1, end_factor=0.9, end=15),
        lambda o: lr_scheduler.LinearLR(o, start_factor=0.1, end_factor=0.9, total_iters=15),
    ),
    "linear to the end of the run": (
        ps.LinearParamScheduler(),
        lambda o: lr_scheduler.LinearLR(o, total_iters=STEPS),
    ),
    "step": (
        ps.StepParamScheduler(step_size=7, gamma=0.3),
        lambda o: lr_scheduler.StepLR(o, step_size=7, gamma=0.3),
    ),
    "multistep": (
        ps.MultiStepParamScheduler(milestones=[1, 5, 30], gamma=0.3),
        lambda o: lr_scheduler.MultiStepLR(o, milestones=[1, 5, 30], gamma=0.3),
    ),
    "exponential": (
        ps.ExponentialParamScheduler(gamma=0.93),
        lambda o: lr_scheduler.ExponentialLR(o, gamma=0.93),
    ),
    "cosine": (
        ps.CosineAnnealingParamScheduler(eta_min=0.003),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=STEPS, eta_min=0.003),
    ),
    "cosine that goes up again": (
        ps.CosineAnnealingParamScheduler(T_max=9, eta_min=0.003),
        lambda o: lr_scheduler.CosineAnnealingLR(o, T_max=9, eta_min=0.003),
    ),
    "cosine restart": (
        ps.CosineRestartParamScheduler(periods=[5, 10, 20, 40], eta_min=0.003),
        lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, T_0=5, T_mult=2, eta_min=0.003),
    ),
    "poly": (
        ps.PolyParamScheduler(power=0.9, end=25),
        lambda o: lr_scheduler.PolynomialLR(o, total_iters=25, power=0.9),
    ),
    "one cycle": (
        ps.OneCycleParamScheduler(eta_max=0.4, total_steps=STEPS + 1),
        one_cycle(),
    ),
    "one cycle, linear, three phases": (
        ps.OneCycleParamScheduler(
            eta_max=0.4,
            total_steps=STEPS + 1,
            anneal_strategy="linear",
            three_phase=True,
            pct_start=0.4,
            div_factor=10,
            final_div_factor=100,
        ),
        one_cycle(
            anneal_strategy="linear",
            three_phase=True,
            pct_start=0.4,
            div_factor=10,
            final_div_factor=100,
        ),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_equals_torch_over_a_whole_run(case):
    scheduler, make = CASES[case]
    assert_close(values_of_ours({"x": scheduler}), values_of_torch(make))


def test_one_cycle_of_the_momentum_equals_torch():
    momentum = ps.OneCycleParamScheduler(
        param_name="momentum",
        eta_max=0.85,
        div_factor=0.85 / 0.95,
        final_div_factor=1,
        total_steps=STEPS + 1,
    )
    theirs = values_of_torch(one_cycle(base_momentum=0.85, max_momentum=0.95), key="momentum")
    assert_close(values_of_ours({"m": momentum}, key="momentum"), theirs)


def test_one_cycle_without_eta_max_peaks_at_each_groups_own_value():
    values = values_of_ours({"x": ps.OneCycleParamScheduler(pct_start=0.5)})
    assert max(first for first, _ in values) == pytest.approx(0.1)
    assert max(second for _, second in values) == pytest.approx(0.02)
    assert values[0] == pytest.approx([0.1 / 25, 0.02 / 25])
    assert values[STEPS - 1] == pytest.approx([0.1 / 25e4, 0.02 / 25e4])  # the last that is used


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_one_cycle_of_a_very_short_run_stays_within_its_bounds(steps):
    for three_phase in (False, True):
        scheduler = ps.OneCycleParamScheduler(eta_max=1.0, three_phase=three_phase)
        for (value,) in values_of_ours({"x": scheduler}, lrs=[0.1], steps=steps):
            assert value * (1 + 1e-9) >= 1 / 25e4 and value <= 1.0


def test_poly_with_eta_min():
    scheduler = ps.PolyParamScheduler(power=2, eta_min=0.01, begin=4, end=14)
    values = values_of_ours({"x": scheduler}, lrs=[0.1])
    for t in range(11):
        assert values[4 + t] == pytest.approx([0.01 + (0.1 - 0.01) * (1 - t / 10) ** 2])


def test_cosine_restart_with_weights():
    scheduler = ps.CosineRestartParamScheduler(
        periods=[4, 8], restart_weights=[1, 0.5], eta_min=0.02, begin=2
    )
    values = [value for (value,) in values_of_ours({"x": scheduler}, lrs=[0.1])]
    assert values[1] == 0.1
    assert values[2] == pytest.approx(0.1)
    assert values[4] == pytest.approx(0.02 + 0.08 / 2)  # half of the first period
    assert values[6] == pytest.approx(0.02 + 0.5 * 0.08)  # the second begins half way up
    assert values[10] == pytest.approx(0.02 + 0.5 * 0.08 / 2)
    assert values[14:] == pytest.approx([0.02] * (STEPS + 1 - 14))


def test_periods_that_end_before_the_run_are_named(caplog):
    with caplog.at_level(logging.WARNING, "hookexp"):
        values_of_ours({"x": ps.CosineRestartParamScheduler(periods=[10, 30])})
        assert not caplog.records
        values_of_ours({"x": ps.CosineRestartParamScheduler(periods=[10, 20])})
    assert "param_scheduler.x: its periods are 30 steps long and the schedule 40" in caplog.text


def test_cosine_down_to_a_share_keeps_the_groups_proportions():
    values = values_of_ours({"x": ps.CosineAnnealingParamScheduler(eta_min_ratio=0.05)})
    assert values[0] == pytest.approx([0.1, 0.02])
    assert values[STEPS // 2] == pytest.approx([0.1 * 0.525, 0.02 * 0.525])
    assert values[STEPS] == pytest.approx([0.1 * 0.05, 0.02 * 0.05])


RANGED = {
    "linear": lambda **r: ps.LinearParamScheduler(start_factor=0.5, end_factor=0.2, **r),
    "step": lambda **r: ps.StepParamScheduler(step_size=2, **r),
    "multistep": lambda **r: ps.MultiStepParamScheduler(milestones=[1, 5, 10], **r),
    "exponential": lambda **r: ps.ExponentialParamScheduler(gamma=0.9, **r),
    "cosine": lambda **r: ps.CosineAnnealingParamScheduler(eta_min=0.01, **r),
    "cosine, own T_max": lambda **r: ps.CosineAnnealingParamScheduler(T_max=4, **r),
    "cosine restart": lambda **r: ps.CosineRestartParamScheduler(periods=[3, 3, 30], **r),
    "poly": lambda **r: ps.PolyParamScheduler(power=2, **r),
    "one cycle": lambda **r: ps.OneCycleParamScheduler(eta_max=1.0, **r),
}


@pytest.mark.parametrize("name", RANGED)
def test_nothing_before_begin_and_a_held_value_from_end_on(name):
    make = RANGED[name]
    ranged = [value for (value,) in values_of_ours({"x": make(begin=5, end=15)}, lrs=[0.1])]
    assert ranged[:5] == [0.1] * 5
    assert ranged[15:] == [ranged[15]] * (STEPS + 1 - 15)
    # within its range it is what it is from 0 on
    from_zero = [value for (value,) in values_of_ours({"x": make(end=10)}, lrs=[0.1])]
    assert ranged[5:16] == from_zero[:11]
    assert len(set(ranged[5:16])) > 1


@pytest.mark.parametrize("name", ["step", "multistep"])
def test_stairs_take_no_step_at_end(name):
    values = [value for (value,) in values_of_ours({"x": RANGED[name](end=10)}, lrs=[0.1])]
    assert values[10] == values[9]


def test_warm_up_and_cosine_equal_the_formula():
    warm, peak, low, start = 10, 0.1, 0.001, 0.05
    schedulers = {
        "warmup": ps.LinearParamScheduler(start_factor=start, end=warm),
        "cosine": ps.CosineAnnealingParamScheduler(begin=warm, eta_min=low),
    }
    values = [value for (value,) in values_of_ours(schedulers, lrs=[peak])]
    for step, value in enumerate(values):
        if step < warm:
            expected = peak * (start + (1 - start) * step / warm)
        else:
            angle = math.pi * (step - warm) / (STEPS - warm)
            expected = low + (peak - low) * (1 + math.cos(angle)) / 2
        assert value == pytest.approx(expected, rel=1e-12), step


REFUSED = [
    (ps.CosineAnnealingParamScheduler, {"T_max": 0}, "T_max=0"),
    (ps.CosineAnnealingParamScheduler, {"eta_min": 0.1, "eta_min_ratio": 0.1}, "eta_min_ratio"),
    (ps.CosineAnnealingParamScheduler, {"begin": 7, "end": 7}, "above begin=7"),
    (ps.CosineAnnealingParamScheduler, {"begin": -1}, "begin=-1"),
    (ps.CosineAnnealingParamScheduler, {"begin": 0.5}, "begin=0.5"),
    (ps.CosineAnnealingParamScheduler, {"by_epoch": "yes"}, "by_epoch='yes'"),
    (ps.CosineAnnealingParamScheduler, {"param_name": ""}, "param_name"),
    (ps.CosineRestartParamScheduler, {"periods": []}, "periods"),
    (ps.CosineRestartParamScheduler, {"periods": 5}, "periods=5"),
    (ps.CosineRestartParamScheduler, {"periods": [5, 0]}, "periods"),
    (
        ps.CosineRestartParamScheduler,
        {"periods": [5, 6, 7], "restart_weights": [1, 2]},
        "each of 3 periods",
    ),
    (ps.StepParamScheduler, {"step_size": 0}, "step_size=0"),
    (ps.StepParamScheduler, {"step_size": True}, "step_size=True"),
    (ps.StepParamScheduler, {"step_size": 3, "gamma": "a"}, "gamma='a'"),
    (ps.MultiStepParamScheduler, {"milestones": [5, 5]}, "increasing"),
    (ps.MultiStepParamScheduler, {"milestones": [9, 5]}, "increasing"),
    (ps.MultiStepParamScheduler, {"milestones": "5"}, "milestones='5'"),
    (ps.MultiStepParamScheduler, {"milestones": []}, "milestones"),
    (ps.ConstantParamScheduler, {"factor": -1}, "factor=-1"),
    (ps.ConstantParamScheduler, {"factor": math.nan}, "factor=nan"),
    (ps.LinearParamScheduler, {"start_factor": -0.1}, "start_factor"),
    (ps.ExponentialParamScheduler, {"gamma": -0.1}, "gamma"),
    (ps.PolyParamScheduler, {"power": 0}, "above 0"),
    (ps.OneCycleParamScheduler, {"pct_start": 1.5}, "from 0 to 1"),
    (ps.OneCycleParamScheduler, {"pct_start": 0.6, "three_phase": True}, "from 0 to 0.5"),
    (ps.OneCycleParamScheduler, {"anneal_strategy": "poly"}, "cos or linear"),
    (ps.OneCycleParamScheduler, {"div_factor": 0}, "div_factor"),
    (ps.OneCycleParamScheduler, {"total_steps": 0}, "total_steps=0"),
]


@pytest.mark.parametrize(("cls", "values", "message"), REFUSED)
def test_values_that_cannot_be_are_refused(cls, values, message):
    with pytest.raises(ValueError, match=cls.__name__) as error:
        cls(**values)
    assert message in str(error.value)

"""The plateau schedule against torch's, and its state."""

from __future__ import annotations

import json
import math
import random

import pytest
import torch

from hookexp.optim.param_schedulers import (
    LinearParamScheduler,
    ParamSchedulers,
    ReduceOnPlateauParamScheduler,
)


def bound(lr=0.1, max_epochs=100, **values):
    """An optimizer and a plateau schedule of its lr, at position 0."""
    values = {"monitor": "loss", **values}
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=lr)
    schedulers = ParamSchedulers({"plateau": ReduceOnPlateauParamScheduler(**values)})
    schedulers.bind({"default": optimizer}, max_epochs, None)
    schedulers.update(0, 0)
    return optimizer, schedulers


def lr_of(optimizer):
    return optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("rule", ["less", "greater"])
@pytest.mark.parametrize("threshold_rule", ["rel", "abs"])
@pytest.mark.parametrize("cooldown", [0, 3])
def test_equals_torch(rule, threshold_rule, cooldown):
    ours, schedulers = bound(
        rule=rule,
        factor=0.5,
        patience=2,
        threshold=0.05,
        threshold_rule=threshold_rule,
        cooldown=cooldown,
        min_value=0.004,
    )
    theirs = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    oracle = torch.optim.lr_scheduler.ReduceLROnPlateau(
        theirs,
        mode="min" if rule == "less" else "max",
        factor=0.5,
        patience=2,
        threshold=0.05,
        threshold_mode=threshold_rule,
        cooldown=cooldown,
        min_lr=0.004,
    )
    draw = random.Random(3)
    seen = set()
    for epoch in range(60):
        trend = 1 / (1 + epoch) if rule == "less" else 1 - 1 / (1 + epoch)
        metric = trend + 0.5 * draw.random() + 0.1
        oracle.step(metric)
        schedulers.update(epoch + 1, 0)
        schedulers.update_with_metrics({"loss": metric})
        assert lr_of(ours) == pytest.approx(lr_of(theirs), rel=1e-12), epoch
        seen.add(lr_of(ours))
    assert len(seen) >= 4 and min(seen) == pytest.approx(0.004)


def test_the_rule_comes_from_the_metrics_name():
    assert ReduceOnPlateauParamScheduler(monitor="val_accuracy").decided_rule == "greater"
    assert ReduceOnPlateauParamScheduler(monitor="loss").decided_rule == "less"
    with pytest.raises(ValueError, match="set rule"):
        ReduceOnPlateauParamScheduler(monitor="perplexity")
    assert ReduceOnPlateauParamScheduler(monitor="perplexity", rule="less").decided_rule == "less"


def test_a_relative_threshold_is_a_margin_for_negative_values_too():
    optimizer, schedulers = bound(patience=0, threshold=0.1)
    for value in (-1.0, -1.05):  # better by 5 %, where 10 % are asked for
        schedulers.update_with_metrics({"loss": value})
    assert lr_of(optimizer) == pytest.approx(0.01)


def test_nan_is_a_bad_evaluation_and_never_the_best():
    optimizer, schedulers = bound(patience=1)
    for value in (math.nan, 2.0, math.nan, 3.0):
        schedulers.update_with_metrics({"loss": value})
    assert schedulers["plateau"].best == 2.0
    assert lr_of(optimizer) == pytest.approx(0.01)


def test_an_infinite_best_is_beaten_by_a_number():
    optimizer, schedulers = bound(patience=0)
    for value in (math.inf, 5.0, 4.0):
        schedulers.update_with_metrics({"loss": value})
    assert schedulers["plateau"].best == 4.0
    assert lr_of(optimizer) == 0.1


def test_a_missing_metric_is_an_error_that_lists_those_there_are():
    _, schedulers = bound()
    with pytest.raises(ValueError, match=r"monitor=loss.*it has: accuracy, f1"):
        schedulers.update_with_metrics({"accuracy": 0.5, "f1": 0.4})


def test_only_evaluations_from_begin_up_to_end_count():
    optimizer, schedulers = bound(patience=0, begin=2, end=4)
    values = []
    for epoch in range(1, 7):
        schedulers.update(epoch, 0)
        schedulers.update_with_metrics({"loss": 1.0})  # epoch 2 is the best, 3 the first bad one
        values.append(lr_of(optimizer))
    assert values == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.01, 0.01])


def test_before_training_metrics_are_ignored():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedulers = ParamSchedulers({"p": ReduceOnPlateauParamScheduler(monitor="loss", patience=0)})
    schedulers.bind({"default": optimizer}, 10, 100)
    for _ in range(3):
        schedulers.update_with_metrics({"loss": 1.0})
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert schedulers["p"].best is None


def test_warm_up_below_the_lowest_value_is_not_raised():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedulers = ParamSchedulers(
        {
            "warmup": LinearParamScheduler(start_factor=0.001, end=10),
            "plateau": ReduceOnPlateauParamScheduler(monitor="loss", patience=0, min_value=0.05),
        }
    )
    schedulers.bind({"default": optimizer}, 20, None)
    schedulers.update(0, 0)
    for _ in range(2):
        schedulers.update_with_metrics({"loss": 1.0})
    assert lr_of(optimizer) == pytest.approx(0.0001)
    schedulers.update(10, 0)
    assert lr_of(optimizer) == pytest.approx(0.05)


METRICS = [3.0, 2.0, 2.0, 2.1, 2.2, 1.9, 2.0, 2.0, 2.0, 2.5, 2.5, 2.5]


def lrs_along(optimizer, schedulers, first_epoch):
    """The lr after each evaluation from that epoch on, and the states meanwhile."""
    lrs, states = [], []
    for epoch in range(first_epoch, len(METRICS)):
        states.append(json.loads(json.dumps(schedulers.state_dict())))  # plain types only
        schedulers.update(epoch + 1, 0)
        schedulers.update_with_metrics({"loss": METRICS[epoch]})
        lrs.append(lr_of(optimizer))
    return lrs, states


@pytest.mark.parametrize("saved_after", range(len(METRICS)))
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(saved_after):
    values = {"factor": 0.5, "patience": 1, "cooldown": 2}
    whole, states = lrs_along(*bound(**values), 0)
    optimizer, schedulers = bound(**values)
    schedulers.load_state_dict(states[saved_after])
    schedulers.update(saved_after, 0)
    resumed, _ = lrs_along(optimizer, schedulers, saved_after)
    assert resumed == whole[saved_after:]
    assert len(set(whole)) == 4


def test_loading_a_state_writes_the_value_and_the_configs_factor_wins():
    _, schedulers = bound(patience=0, factor=0.5)
    for _ in range(3):
        schedulers.update_with_metrics({"loss": 1.0})
    resumed, again = bound(patience=0, factor=0.2)
    again.load_state_dict(schedulers.state_dict())
    assert lr_of(resumed) == pytest.approx(0.1 * 0.2**2)


def test_the_best_of_another_metric_is_forgotten():
    _, schedulers = bound(patience=3)
    schedulers.update_with_metrics({"loss": 0.2})
    schedulers.update_with_metrics({"loss": 0.3})
    _, again = bound(patience=3, monitor="accuracy")
    again.load_state_dict(schedulers.state_dict())
    assert (again["plateau"].best, again["plateau"].num_bad_evals) == (None, 0)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"monitor": ""}, "monitor"),
        ({"rule": "min"}, "greater or less"),
        ({"factor": 1.0}, "below 1"),
        ({"factor": -0.1}, "factor"),
        ({"patience": -1}, "patience=-1"),
        ({"patience": 1.5}, "patience=1.5"),
        ({"threshold": -1}, "threshold=-1"),
        ({"threshold_rule": "relative"}, "rel or abs"),
        ({"cooldown": -1}, "cooldown=-1"),
        ({"min_value": "x"}, "min_value='x'"),
    ],
)
def test_values_that_cannot_be_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        ReduceOnPlateauParamScheduler(**{"monitor": "loss", **values})

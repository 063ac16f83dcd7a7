"""The collection: what it writes, where, and when."""

from __future__ import annotations

import logging
import math

import pytest
import torch

from hookexp.checkpoint.plain import ensure_plain
from hookexp.errors import ConfigError
from hookexp.optim.param_schedulers import (
    ConstantParamScheduler,
    CosineAnnealingParamScheduler,
    ExponentialParamScheduler,
    LinearParamScheduler,
    ParamSchedulers,
    ReduceOnPlateauParamScheduler,
    StepParamScheduler,
)


def parameter():
    return torch.nn.Parameter(torch.ones(2))


def bound(optimizer, schedulers, max_epochs=10, max_steps=100):
    collection = ParamSchedulers(schedulers)
    collection.bind({"default": optimizer}, max_epochs, max_steps)
    return collection


def test_it_is_a_collection_of_schedulers_by_name():
    step, decay = StepParamScheduler(step_size=2), ExponentialParamScheduler(gamma=0.9)
    schedulers = ParamSchedulers({"step": step, "decay": decay})
    assert list(schedulers) == [step, decay]
    assert len(schedulers) == 2
    assert schedulers["decay"] is decay
    assert len(ParamSchedulers()) == 0


def test_what_is_no_scheduler_is_refused():
    with pytest.raises(ValueError, match=r"param_scheduler\.cosine: \{'T_max': 3\}"):
        ParamSchedulers({"cosine": {"T_max": 3}})


def test_without_schedulers_nothing_is_written():
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    schedulers = bound(optimizer, {})
    keys = set(optimizer.param_groups[0])
    schedulers.update(3, 30)
    schedulers.update_with_metrics({"loss": 1.0})
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert set(optimizer.param_groups[0]) == keys


def test_schedulers_compose_in_the_configs_order():
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    cosine = CosineAnnealingParamScheduler(by_epoch=False, eta_min=0.02)
    halved = ConstantParamScheduler(factor=0.5)
    bound(optimizer, {"a": cosine, "b": halved}).update(0, 50)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.06)
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    bound(optimizer, {"b": halved, "a": cosine}).update(0, 50)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.02 + (0.05 - 0.02) / 2)


def test_warm_up_by_steps_and_steps_by_epochs():
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    schedulers = bound(
        optimizer,
        {
            "warmup": LinearParamScheduler(by_epoch=False, start_factor=0.0, end=20),
            "step": StepParamScheduler(by_epoch=True, step_size=1, gamma=0.5),
        },
    )
    for epoch, steps, expected in [(0, 0, 0.0), (0, 5, 0.025), (1, 10, 0.025), (2, 20, 0.025)]:
        schedulers.update(epoch, steps)
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


@pytest.mark.parametrize(
    ("by_epoch", "max_epochs", "expected"),
    [(None, 10, 0.5), (None, None, 0.2), (True, 10, 0.5), (False, 10, 0.2), (False, None, 0.2)],
)
def test_what_positions_count(by_epoch, max_epochs, expected):
    optimizer = torch.optim.SGD([parameter()], lr=1.0)
    fall = LinearParamScheduler(by_epoch=by_epoch, start_factor=1.0, end_factor=0.0)
    bound(optimizer, {"x": fall}, max_epochs, 100).update(5, 80)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_epochs_in_a_run_by_iterations_are_an_error():
    optimizer = torch.optim.SGD([parameter()], lr=1.0)
    with pytest.raises(ValueError, match=r"param_scheduler\.x\.by_epoch=true.*by_epoch=false"):
        bound(optimizer, {"x": StepParamScheduler(step_size=1, by_epoch=True)}, None, 100)


def test_an_end_that_cannot_be_known_is_an_error_where_it_is_needed():
    optimizer = torch.optim.SGD([parameter()], lr=1.0)
    cosine = CosineAnnealingParamScheduler(by_epoch=False)
    with pytest.raises(ValueError, match=r"param_scheduler\.x\.end=null"):
        bound(optimizer, {"x": cosine}, 10, None)
    bound(optimizer, {"x": CosineAnnealingParamScheduler(by_epoch=False, end=50)}, 10, None)
    bound(optimizer, {"x": CosineAnnealingParamScheduler(by_epoch=False, T_max=5)}, 10, None)
    bound(optimizer, {"x": ExponentialParamScheduler(by_epoch=False, gamma=0.9)}, 10, None)
    bound(optimizer, {"x": CosineAnnealingParamScheduler(by_epoch=True)}, 10, None)


def test_a_scheduler_that_never_starts_is_named(caplog):
    optimizer = torch.optim.SGD([parameter()], lr=1.0)
    with caplog.at_level(logging.WARNING, "hookexp"):
        late = bound(optimizer, {"late": CosineAnnealingParamScheduler(begin=10)}, 10)
    assert "param_scheduler.late never starts: it begins at 10, and the run has 10 epochs" in (
        caplog.text
    )
    late.update(10, 100)
    assert optimizer.param_groups[0]["lr"] == 1.0


def test_a_longer_run_stretches_the_schedule():
    for max_epochs in (10, 20):
        optimizer = torch.optim.SGD([parameter()], lr=1.0)
        bound(optimizer, {"x": CosineAnnealingParamScheduler()}, max_epochs).update(10, 0)
        expected = (1 + math.cos(math.pi * 10 / max_epochs)) / 2
        assert optimizer.param_groups[0]["lr"] == pytest.approx(expected)


def test_every_group_of_every_optimizer_from_its_own_value():
    first = torch.optim.SGD([{"params": [parameter()]}, {"params": [parameter()], "lr": 0.5}], lr=1)
    second = torch.optim.AdamW([parameter()], lr=0.25)
    schedulers = ParamSchedulers({"x": ExponentialParamScheduler(gamma=0.5)})
    schedulers.bind({"generator": first, "discriminator": second}, 10, 100)
    schedulers.update(1, 0)
    groups = first.param_groups + second.param_groups
    assert [group["lr"] for group in groups] == [0.5, 0.25, 0.125]
    assert [group["initial_lr"] for group in groups] == [1.0, 0.5, 0.25]


def test_momentum_is_the_first_beta_of_adam():
    sgd = torch.optim.SGD([parameter()], lr=1.0, momentum=0.8)
    adam = torch.optim.Adam([parameter()], betas=(0.9, 0.99))
    schedulers = ParamSchedulers({"x": ConstantParamScheduler(param_name="momentum", factor=0.5)})
    schedulers.bind({"sgd": sgd, "adam": adam}, 10, 100)
    schedulers.update(0, 0)
    assert sgd.param_groups[0]["momentum"] == 0.4
    assert adam.param_groups[0]["betas"] == (0.45, 0.99)
    assert "momentum" not in adam.param_groups[0]


def test_any_number_of_a_group_beside_the_lr():
    optimizer = torch.optim.AdamW([parameter()], lr=0.1, weight_decay=0.4)
    schedulers = bound(
        optimizer,
        {
            "decay": ConstantParamScheduler(param_name="weight_decay", factor=0.5),
            "eps": ConstantParamScheduler(param_name="eps", factor=10.0),
            "lr": ConstantParamScheduler(factor=0.1),
        },
    )
    schedulers.update(0, 0)
    group = optimizer.param_groups[0]
    assert (group["weight_decay"], group["eps"]) == (0.2, pytest.approx(1e-7))
    assert group["lr"] == pytest.approx(0.01)


def test_an_entry_the_groups_lack_is_an_error_that_lists_what_they_have():
    optimizer = torch.optim.Adagrad([parameter()], lr=0.1)
    with pytest.raises(ValueError) as error:
        bound(optimizer, {"m": ConstantParamScheduler(param_name="momentum")})
    assert "param_scheduler.m.param_name=momentum" in str(error.value)
    assert "lr, lr_decay, maximize, weight_decay" in str(error.value)
    assert "params" not in str(error.value).split("they have:")[1]


def test_an_entry_that_is_no_number_is_an_error():
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    with pytest.raises(ValueError, match=r"nesterov.*False, which is not a number"):
        bound(optimizer, {"x": ConstantParamScheduler(param_name="nesterov")})


def test_a_tensor_is_filled_in_place():
    lr = torch.tensor(0.5)
    optimizer = torch.optim.Adam([parameter()], lr=lr, foreach=False)
    held = optimizer.param_groups[0]["lr"]
    bound(optimizer, {"x": ConstantParamScheduler(factor=0.5)}).update(0, 0)
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == 0.25


def test_it_writes_only_when_a_position_that_matters_has_changed():
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    schedulers = bound(optimizer, {"x": ExponentialParamScheduler(by_epoch=True, gamma=0.5)})
    schedulers.update(1, 10)
    optimizer.param_groups[0]["lr"] = 7.0
    schedulers.update(1, 11)
    assert optimizer.param_groups[0]["lr"] == 7.0
    schedulers.update(2, 11)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)


def test_it_does_not_go_back_to_where_it_began_when_steps_alone_matter():
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    schedulers = bound(optimizer, {"x": ExponentialParamScheduler(by_epoch=False, gamma=0.5)})
    schedulers.update(0, 1)
    optimizer.param_groups[0]["lr"] = 7.0
    schedulers.update(1, 1)
    assert optimizer.param_groups[0]["lr"] == 7.0
    schedulers.update(1, 2)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)


def test_groups_that_a_loaded_optimizer_state_has_replaced():
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    schedulers = bound(optimizer, {"x": ExponentialParamScheduler(gamma=0.5)})
    schedulers.update(1, 0)
    optimizer.load_state_dict(optimizer.state_dict())
    optimizer.param_groups[0]["lr"] = 7.0
    schedulers.update(1, 0)  # the position is the same, the groups are new
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.05)
    schedulers.update(2, 0)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.025)  # from 0.1, not from 0.05


def test_a_group_that_is_added_while_training():
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    schedulers = bound(optimizer, {"x": ExponentialParamScheduler(gamma=0.5)})
    schedulers.update(1, 0)
    optimizer.add_param_group({"params": [parameter()], "lr": 0.4})
    schedulers.update(2, 0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.025, 0.1])


def test_the_state_holds_only_what_does_not_follow_from_the_position():
    optimizer = torch.optim.SGD([parameter()], lr=0.1)
    schedulers = bound(
        optimizer,
        {
            "cosine": CosineAnnealingParamScheduler(),
            "plateau": ReduceOnPlateauParamScheduler(monitor="loss"),
        },
    )
    schedulers.update(0, 0)
    schedulers.update_with_metrics({"loss": 2.0})
    state = schedulers.state_dict()
    ensure_plain(state, "param_schedulers")
    assert list(state) == ["plateau"]
    assert state["plateau"]["best"] == 2.0
    assert schedulers["cosine"].state_dict() == {}


def test_a_monitored_metric_that_is_not_measured():
    schedulers = ParamSchedulers(
        {
            "cosine": CosineAnnealingParamScheduler(),
            "plateau": ReduceOnPlateauParamScheduler(monitor="accuracy"),
        }
    )
    schedulers.check_metrics(["accuracy", "loss"])
    with pytest.raises(ConfigError, match=r"param_scheduler\.plateau\.monitor=accuracy: .*: loss"):
        schedulers.check_metrics(["loss"])

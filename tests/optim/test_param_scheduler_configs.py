"""Every option of the config group `param_scheduler` makes schedulers that work."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import hydra
import pytest
import torch
from omegaconf import OmegaConf

from hookexp.optim.param_schedulers import ParamSchedulers

FOLDER = Path(__file__).parents[2] / "conf" / "param_scheduler"
OPTIONS = sorted(path.stem for path in FOLDER.glob("*.yaml"))
STEPS_PER_EPOCH = 30


def load(option):
    return OmegaConf.create({"param_scheduler": OmegaConf.load(FOLDER / f"{option}.yaml")})


def instantiate(config):
    return {name: hydra.utils.instantiate(node) for name, node in config.param_scheduler.items()}


def lrs_of(option, max_epochs=10, epochs=10):
    """The lr of every optimizer step of a run."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    schedulers = ParamSchedulers(instantiate(load(option)))
    schedulers.bind({"default": optimizer}, max_epochs, epochs * STEPS_PER_EPOCH)
    lrs = []
    for step in range(epochs * STEPS_PER_EPOCH):
        schedulers.update(step // STEPS_PER_EPOCH, step)
        lrs.append(optimizer.param_groups[0]["lr"])
    return lrs


def test_there_are_options_to_test():
    assert {"none", "cosine", "step", "plateau", "warmup_cosine"} <= set(OPTIONS)


@pytest.mark.parametrize("option", OPTIONS)
def test_the_first_line_says_what_it_is(option):
    first_line = (FOLDER / f"{option}.yaml").read_text().splitlines()[0]
    assert first_line.startswith("# ") and len(first_line) > 20


@pytest.mark.parametrize("option", OPTIONS)
def test_every_parameter_is_a_key_that_can_be_overridden(option):
    for entry in load(option)["param_scheduler"].values():
        cls = hydra.utils.get_class(entry["_target_"])
        parameters = {field.name for field in dataclasses.fields(cls) if field.init}
        assert set(entry) - {"_target_"} == parameters


def assert_usable(option, lrs):
    assert all(math.isfinite(lr) and 0 < lr <= 0.1 + 1e-12 for lr in lrs)
    assert (len(set(lrs)) > 1) == (option not in ("none", "plateau"))


@pytest.mark.parametrize("option", OPTIONS)
def test_a_run_by_epochs_has_usable_values_and_they_change(option):
    assert_usable(option, lrs_of(option))


@pytest.mark.parametrize("option", OPTIONS)
def test_a_run_by_iterations_has_them_too_or_is_told_that_the_numbers_are_epochs(option):
    by_epoch = [node.by_epoch for node in load(option).param_scheduler.values()]
    if True in by_epoch:  # with the numbers taken for steps the lr would be gone after a few
        with pytest.raises(ValueError, match="by_epoch=false"):
            lrs_of(option, max_epochs=None)
    else:
        assert_usable(option, lrs_of(option, max_epochs=None))


def test_warm_up_and_cosine():
    lrs = lrs_of("warmup_cosine")
    assert lrs[0] == pytest.approx(0.001)
    assert lrs[50] == pytest.approx(0.1)
    assert lrs.index(max(lrs)) == 50
    assert lrs[-1] < 1e-5


def test_the_next_scheduler_begins_where_the_warm_up_ends():
    for option in ("warmup_cosine", "warmup_linear"):
        config = load(option)
        config.param_scheduler.warmup.end = 80
        schedulers = instantiate(config)
        assert list(schedulers.values())[1].begin == 80

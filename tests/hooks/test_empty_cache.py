"""Where the cache is emptied, counted through the device's own function, and on a real GPU."""

from __future__ import annotations

import pytest
import torch
from fakes import Recorder
from omegaconf import OmegaConf

from hookexp.compose.conf_dir import conf_dir
from hookexp.compose.instantiate import instantiate
from hookexp.hook import Hook, Priority
from hookexp.hooks.empty_cache import EmptyCacheHook


class CountedDevice:
    """Notes at which mount point the cache was emptied: the last one a first hook has seen."""

    def __init__(self, monkeypatch):
        self.seen = Recorder()
        self.seen.priority = Priority.HIGHEST
        self.emptied_at = []
        monkeypatch.setattr(
            torch.cpu, "empty_cache", lambda: self.emptied_at.append(self.seen.points[-1]), False
        )


@pytest.fixture
def device(monkeypatch):
    return CountedDevice(monkeypatch)


ITERS = ["after_train_iter", "after_val_iter", "after_test_iter"]


@pytest.mark.parametrize(
    ("arguments", "points"),
    [
        ({}, ["after_train_epoch", "after_val_epoch", "after_test_epoch"]),
        ({"after_epoch": False}, []),
        (
            {"before_epoch": True, "after_epoch": False},
            ["before_train_epoch", "before_val_epoch", "before_test_epoch"],
        ),
        ({"after_epoch": False, "after_iter": True}, [ITERS[0]] * 3 + ITERS[1:]),
    ],
)
def test_it_is_emptied_at_the_points_that_are_asked_for(make_runner, device, arguments, points):
    hooks = {"empty_cache": EmptyCacheHook(**arguments), "seen": device.seen}
    runner = make_runner(hooks, max_epochs=1)
    runner.run("train")
    runner.run("test")
    # The optimizer's points are fired inside after_train_iter.
    emptied_at = [p.replace("after_optim_step", "after_train_iter") for p in device.emptied_at]
    assert emptied_at == points


def test_a_cpu_has_nothing_to_empty_which_is_said(make_runner, caplog):
    with caplog.at_level("INFO"):
        make_runner({"empty_cache": EmptyCacheHook(after_iter=True)}, max_epochs=1).run("train")
    assert "cpu keeps no cache, so there is nothing to empty" in caplog.text


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_gpu_gives_memory_back(make_runner):
    class Waste(Hook):
        def before_train_epoch(self, runner):
            torch.empty(64 << 20, device="cuda")

    runner = make_runner({"waste": Waste(), "empty_cache": EmptyCacheHook()}, max_epochs=1)
    runner.device = torch.device("cuda")
    before = torch.cuda.memory_reserved()
    runner.run("train")
    assert torch.cuda.memory_reserved() < before + (64 << 20)


def test_the_config_shows_every_parameter_with_its_default():
    config = OmegaConf.load(conf_dir() / "hooks" / "empty_cache" / "default.yaml")
    assert config.pop("priority") is None
    assert vars(instantiate(config, "hooks.empty_cache")) == vars(EmptyCacheHook())
    assert EmptyCacheHook.priority == Priority.NORMAL

"""What learns, and its mode, is what it was after a resume, unless the run says otherwise now."""

from __future__ import annotations

import pytest
import torch
from fakes import StopAt, TinyModel
from torch import nn

from hookexp.checkpoint.frozen import Frozen
from hookexp.checkpoint.reading import load_checkpoint
from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.freeze import FreezeHook


class HalfFrozen(TinyModel):
    def __init__(self):
        super().__init__()
        self.inner.requires_grad_(False)
        self.outer.requires_grad_(False)


class Thaw(Hook):
    """One layer more at the begin of each epoch."""

    def before_train_epoch(self, runner):
        layers = {1: runner.model.outer, 2: runner.model.inner}
        if runner.epoch in layers:
            layers[runner.epoch].requires_grad_()


class FreezesInTime(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 3:
            runner.model.inner.requires_grad_(False)


class Noisy(TinyModel):
    """Its part `inner` drops values in training, wherever the model itself is."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Sequential(self.inner, nn.Dropout(0.5))


class QuietInTime(Hook):
    """One part stays in evaluation mode from some iteration on."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 3:
            runner.model.inner.eval()


def run(make_runner, folder, hooks, make_model=TinyModel, **more):
    torch.manual_seed(0)
    hooks = {"checkpoint": CheckpointHook(interval=100), **hooks}
    runner = make_runner(hooks, model=make_model(), work_dir=folder, max_epochs=4, **more)
    runner.run("train")
    return runner


def until_epoch_2():
    return FreezeHook(["inner"], until_epoch=2)


@pytest.mark.parametrize("stops", [(4, 7), (6, 8, 10), (5,), (7, 8)])
@pytest.mark.parametrize(
    ("make_hook", "make_model"),
    [
        (Thaw, HalfFrozen),
        (FreezesInTime, TinyModel),
        (until_epoch_2, TinyModel),
        (QuietInTime, Noisy),
    ],
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(
    make_runner, tmp_path, make_hook, make_model, stops
):
    run(make_runner, tmp_path / "whole", {"hook": make_hook()}, make_model)
    for index, stop in enumerate(stops):
        hooks = {"hook": make_hook(), "stop": StopAt(stop)}
        resume = "auto" if index else None
        run(make_runner, tmp_path / "cut", hooks, make_model, resume=resume)
    run(make_runner, tmp_path / "cut", {"hook": make_hook()}, make_model, resume="auto")
    whole, resumed = (load_checkpoint(tmp_path / name / "epoch_4.pth") for name in ("whole", "cut"))
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][name]), name
    for what in ("now", "modules_now"):
        assert whole["frozen"][what] == resumed["frozen"][what]


class Quiet(Hook):
    def before_train(self, runner):
        runner.model.inner.eval()


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"quiet": Quiet()}, {}, "inner: are in training mode now"),
        ({}, {"quiet": Quiet()}, "inner: are in evaluation mode now"),
    ],
)
def test_so_it_is_with_modes(make_runner, tmp_path, caplog, before, after, said):
    run(make_runner, tmp_path / "r", {**before, "stop": StopAt(4)})
    caplog.clear()
    runner = run(make_runner, tmp_path / "r", after, resume="auto")
    assert runner.model.inner.training == (not after)
    told = [message for message in caplog.messages if "mode now" in message]
    assert len(told) == 1 and said in told[0]


def test_a_checkpoint_that_says_nothing_of_modes_changes_none(caplog):
    frozen = Frozen(model := TinyModel())
    state = {key: value for key, value in frozen.state_dict().items() if "modules" not in key}
    model.eval()
    frozen.load_state_dict(state)
    assert not model.training and caplog.messages == []


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({"freeze": FreezeHook(["inner"])}, {}, "inner.weight, inner.bias: learn now"),
        ({}, {"freeze": FreezeHook(["inner"])}, "inner.weight, inner.bias: are frozen now"),
        ({}, {}, ""),
    ],
)
def test_what_the_run_says_now_counts_and_is_told(
    make_runner, tmp_path, caplog, before, after, said
):
    run(make_runner, tmp_path / "r", {**before, "stop": StopAt(4)})
    caplog.clear()
    learns = []

    class Look(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            learns.append(runner.model.inner.weight.requires_grad)

    run(make_runner, tmp_path / "r", {**after, "look": Look()}, resume="auto")
    assert set(learns) == {not after}
    told = [message for message in caplog.messages if "inner.weight" in message]
    assert len(told) == bool(said) and all(said in message for message in told)

"""What a loss, a task or a buffer that is not persistent keeps comes back after a resume."""

from __future__ import annotations

import copy

import pytest
import torch
from fakes import TinyModel, TinyTask
from torch import nn

from hookexp.checkpoint.beside import Beside
from hookexp.checkpoint.reading import load_checkpoint
from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook


class Centred(nn.Module):
    """A loss with a running mean of the targets, and weights that never change."""

    def __init__(self):
        super().__init__()
        self.register_buffer("centre", torch.zeros(1))
        self.register_buffer("weight", torch.ones(1))

    def forward(self, outputs, targets):
        self.centre.lerp_(targets.mean(0), 0.1)
        return self.weight * (outputs - targets + self.centre).square().mean()


class CentredTask(TinyTask):
    def __init__(self):
        super().__init__()
        self.loss = Centred()

    def train_step(self, model, batch):
        return {"loss": self.loss(model(batch[0]), batch[1])}


class CountingTask(TinyTask):
    """Its loss depends on how many steps it has made."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def train_step(self, model, batch):
        self.steps += 1
        return {"loss": super().train_step(model, batch)["loss"] * self.steps}

    def state_dict(self):
        return {"steps": self.steps}

    def load_state_dict(self, state):
        self.steps = state["steps"]


class Remembering(TinyModel):
    def __init__(self):
        super().__init__()
        self.register_buffer("last", torch.zeros(1), persistent=False)

    def forward(self, inputs):
        outputs = super().forward(inputs) + self.last
        if self.training:
            self.last = outputs.detach().mean(0)  # Another tensor each time.
        return outputs


class ManyLossesTask(TinyTask):
    """Not a module itself, it keeps some in lists and dicts, and a parameter."""

    def __init__(self):
        super().__init__()
        self.losses = {"centred": [Centred()]}
        self.temperature = nn.Parameter(torch.ones(1))

    def setup(self, runner):
        runner.optimizer.add_param_group({"params": [self.temperature]})

    def train_step(self, model, batch):
        loss = self.losses["centred"][0](model(batch[0]), batch[1])
        return {"loss": (loss * self.temperature.sigmoid()).sum()}


class TaughtTask(TinyTask):
    """Its teacher follows the model, in the words of published code."""

    def setup(self, runner):
        self.teacher = copy.deepcopy(runner.model)

    def train_step(self, model, batch):
        taught = self.teacher(batch[0]).detach()
        pairs = list(zip(model.parameters(), self.teacher.parameters(), strict=True))
        for ours, theirs in pairs[:2]:
            theirs.data.mul_(0.9).add_(0.1 * ours.detach().data)
        for ours, theirs in pairs[2:]:
            theirs.data = theirs.data * 0.9 + ours.data * 0.1
        return {"loss": nn.functional.mse_loss(model(batch[0]), taught + batch[1])}


class StopAt(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == 4:
            runner.state.stop("told to", urgent=True)


@pytest.mark.parametrize(
    ("make_task", "make_model"),
    [
        (CentredTask, TinyModel),
        (ManyLossesTask, TinyModel),
        (TaughtTask, TinyModel),
        (CountingTask, TinyModel),
        (TinyTask, Remembering),
    ],
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(
    make_runner, tmp_path, make_task, make_model
):
    def run(folder, hooks, **more):
        torch.manual_seed(0)
        hooks = {"checkpoint": CheckpointHook(), **hooks}
        parts = {"model": make_model(), "task": make_task()}
        make_runner(hooks, work_dir=folder, max_epochs=3, **parts, **more).run("train")
        return load_checkpoint(folder / "epoch_3.pth") if "stop" not in hooks else None

    whole = run(tmp_path / "whole", {})
    run(tmp_path / "cut", {"stop": StopAt()})
    resumed = run(tmp_path / "cut", {}, resume="auto")
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][name]), name
    assert whole["beside"].keys() == resumed["beside"].keys()
    assert any(whole["beside"].values())


def test_what_has_not_changed_is_as_the_config_says():
    task = CentredTask()
    beside = Beside(TinyModel(), task)
    seen = {"outputs": [], "reset": []}
    expected = {"tensors": {}, "values": [{}], "data": [{}], "seen": seen, "task": None}
    assert beside.state_dict() == expected
    task.loss(torch.ones(2, 1), torch.ones(2, 1))
    assert list(beside.state_dict()["tensors"]) == ["task.loss.centre"]


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.zeros(()),
        lambda: torch.zeros(3, 70000).t(),
        lambda: torch.zeros(5, dtype=torch.bfloat16),
        lambda: torch.zeros(4, dtype=torch.complex64),
        lambda: torch.zeros(3, dtype=torch.bool),
        lambda: torch.arange(100_000),
    ],
)
def test_a_change_of_a_single_element_or_of_the_order_counts(make):
    task = TinyTask()
    task.bank = nn.Module()
    task.bank.register_buffer("rows", make())
    beside = Beside(TinyModel(), task)
    assert beside.state_dict()["tensors"] == {}
    task.bank.rows.t().reshape(-1).data[-1:] = 1
    assert list(beside.state_dict()["tensors"]) == ["task.bank.rows"]
    if task.bank.rows.numel() > 1:
        last = Beside(TinyModel(), task)
        task.bank.rows.data = task.bank.rows.flip(0)
        assert list(last.state_dict()["tensors"]) == ["task.bank.rows"]


def test_zeros_of_another_shape_are_a_change():
    task = TinyTask()
    task.bank = nn.Module()
    task.bank.register_buffer("rows", torch.zeros(2))
    beside = Beside(TinyModel(), task)
    task.bank.rows = torch.zeros(3)
    assert list(beside.state_dict()["tensors"]) == ["task.bank.rows"]


def test_what_is_part_of_the_model_is_not_kept_twice():
    task, model = TinyTask(), TinyModel()
    task.teacher = model.inner
    beside = Beside(model, task)
    with torch.no_grad():
        model.inner.weight.zero_()
    assert beside.state_dict()["tensors"] == {}


def test_what_is_no_more_is_said_to_begin_anew(caplog):
    state = {"tensors": {"task.loss.centre": torch.ones(1), "task.gone": torch.ones(1)}}
    task = CentredTask()
    with caplog.at_level("WARNING"):
        Beside(TinyModel(), task).load_state_dict({**state, "task": None})
    assert task.loss.centre.item() == 1.0
    assert caplog.messages == ["task.gone is not what it was in the checkpoint, and begins anew"]


def test_a_task_that_does_not_take_its_state_says_so():
    with pytest.raises(ConfigError, match=r"task: CountingTask does not take .*KeyError: 'steps'"):
        Beside(TinyModel(), CountingTask()).load_state_dict({"tensors": {}, "task": {}})

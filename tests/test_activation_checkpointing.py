"""Recomputed modules: the same loss, gradients and statistics, bit for bit."""

from __future__ import annotations

import copy

import pytest
import torch
from fakes import Recorder, StopAt
from torch import nn
from torch.nn import functional as F

from hookexp.activation_checkpointing import recompute_in_backward
from hookexp.errors import ConfigError
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.ema import EMAHook


class Block(nn.Module):
    """Dropout and batch norm: random numbers and statistics, both of which a second pass meets."""

    def __init__(self, momentum=0.1):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4, momentum=momentum)
        self.dropout = nn.Dropout(0.5)
        self.passes = 0

    def forward(self, x):
        if not torch.compiler.is_compiling():
            self.passes += 1
        return x + self.dropout(torch.relu(self.norm(self.inner(x))))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.blocks = nn.Sequential(Block(), Block(momentum=None))
        self.head = nn.Linear(4, 1)

    def forward(self, x):
        return self.head(self.blocks(x))


def pair(patterns):
    torch.manual_seed(0)
    plain = Net()
    recomputed = copy.deepcopy(plain)
    recompute_in_backward(recomputed, patterns)
    return plain, recomputed


def step(model, seed=1):
    torch.manual_seed(seed)
    inputs = torch.randn(8, 4)
    loss = F.mse_loss(model(inputs), torch.ones(8, 1))
    loss.backward()
    drawn = torch.rand(1)
    return loss, drawn


@pytest.mark.parametrize("patterns", [["blocks.*"], ["blocks"], ["blocks.0", "head"]])
def test_loss_gradients_statistics_and_random_numbers_are_the_same(patterns):
    plain, recomputed = pair(patterns)
    assert list(plain.state_dict()) == list(recomputed.state_dict())
    for seed in range(3):
        one, two = step(plain, seed), step(recomputed, seed)
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])
    for (name, p), q in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad), name
    for (name, p), q in zip(plain.named_buffers(), recomputed.buffers(), strict=True):
        assert torch.equal(p, q), name
    assert recomputed.blocks[0].passes == 6 and plain.blocks[0].passes == 3


def test_a_pattern_names_one_level():
    _, recomputed = pair(["blocks.*"])
    step(recomputed)
    chosen = [n for n, m in recomputed.named_modules() if "forward" in vars(m)]
    assert chosen == ["blocks.0", "blocks.1"]


def test_nothing_is_computed_twice_in_an_evaluation(monkeypatch):
    _, recomputed = pair(["blocks.*"])
    # Not even the generators' states are taken for a second pass.
    monkeypatch.setattr("hookexp.activation_checkpointing.checkpoint", None)
    with torch.no_grad():
        recomputed.eval()(torch.ones(2, 4))
    assert recomputed.blocks[0].passes == 1


def test_a_copy_of_the_model_uses_its_own_weights():
    _, recomputed = pair(["blocks.*"])
    twin = copy.deepcopy(recomputed)
    with torch.no_grad():
        twin.blocks[0].inner.weight.zero_()
    step(twin)
    assert recomputed.blocks[0].passes == 0
    assert twin.blocks[0].passes == 2
    assert twin.blocks[0].inner.weight.grad is not None


def test_a_name_that_is_no_module_lists_the_nearest():
    with pytest.raises(ConfigError, match=r"'block\.\*' is the name of no module .*: blocks"):
        recompute_in_backward(Net(), ["block.*"])


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_together_with_compile():
    plain, recomputed = pair(["blocks.*"])
    for model in (plain, recomputed):
        for block in model.blocks:
            block.dropout.p = 0.0
            block.norm.momentum = 0.1
    compiled = torch.compile(recomputed, backend="aot_eager", fullgraph=True)
    for seed in range(2):
        torch.testing.assert_close(step(plain, seed)[0], step(compiled, seed)[0])
    for (name, p), q in zip(plain.named_parameters(), recomputed.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, msg=name)
    for (name, p), q in zip(plain.named_buffers(), recomputed.named_buffers(), strict=True):
        torch.testing.assert_close(p, q[1], msg=name)
    torch._dynamo.reset()


def test_a_run_that_was_stopped_and_resumed_is_the_run_that_was_not(make_runner, tmp_path):
    def run(folder, stop_at=99, **more):
        torch.manual_seed(0)
        model = Net()
        recompute_in_backward(model, ["blocks.*"])
        hooks = {"checkpoint": CheckpointHook(), "ema": EMAHook(), "recorder": Recorder()}
        hooks["stop"] = StopAt(stop_at)
        runner = make_runner(hooks, work_dir=folder, model=model, max_epochs=2, **more)
        runner.run("train")
        return runner

    whole = run(tmp_path / "whole").model.state_dict()
    run(tmp_path / "cut", stop_at=2)
    rest = run(tmp_path / "cut", resume="auto")
    assert rest.resumed
    assert all(torch.equal(value, whole[key]) for key, value in rest.model.state_dict().items())

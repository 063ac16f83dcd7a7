"""Several optimizers by name, and what comes back after a resume."""

from __future__ import annotations

import copy

import pytest
import torch
from fakes import Recorder, TinyTask
from torch import nn

from hookexp.optim.wrapper import OptimWrapper


class Pair(nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = nn.Linear(4, 1)
        self.critic = nn.Linear(4, 1)

    def forward(self, inputs):
        return self.generator(inputs) - self.critic(inputs)


def wrapper_of(model, lr=0.1):
    optimizers = {
        "generator": torch.optim.SGD(model.generator.parameters(), lr=lr),
        "critic": torch.optim.Adam(model.critic.parameters(), lr=lr, betas=(0.7, 0.9)),
    }
    return OptimWrapper(optimizers, torch.amp.GradScaler("cpu", enabled=False))


class SelfStepping(TinyTask):
    """Steps both optimizers by name, the critic twice for each step of the generator."""

    def setup(self, runner):
        self.runner = runner

    def train_step(self, model, batch):
        for name in ("critic", "critic", "generator"):
            outputs = super().train_step(model, batch)
            outputs["loss"].backward()
            self.runner.optimizer_step(name)
            self.runner.optim_wrapper.zero_grad()
        return outputs


def test_the_first_optimizer_is_the_clock_and_each_step_fires_its_points(make_runner):
    recorder, model = Recorder(), Pair()
    runner = make_runner(
        {"recorder": recorder},
        with_optimizer=False,
        model=model,
        task=SelfStepping(),
        max_epochs=1,
    )
    runner.optim_wrapper = wrapper_of(model)
    runner.run("train")
    assert recorder.points.count("after_optim_step") == 9
    assert runner.state.optim_steps == 3


def test_only_the_named_optimizer_steps():
    model = Pair()
    before = copy.deepcopy(model.state_dict())
    wrapper = wrapper_of(model)
    wrapper.backward(model(torch.ones(2, 4)).sum())
    assert wrapper.step("critic")
    after = model.state_dict()
    assert torch.equal(before["generator.weight"], after["generator.weight"])
    assert not torch.equal(before["critic.weight"], after["critic.weight"])
    with pytest.raises(ValueError, match="no optimizer 'actor'; the config has: generator, critic"):
        wrapper.step("actor")


def test_lr_and_momentum_of_all_groups():
    wrapper = wrapper_of(Pair())
    assert wrapper.get_lr() == {"lr": [0.1, 0.1]}
    assert wrapper.get_momentum() == {"momentum": [0.0, 0.7]}


def test_states_and_open_gradients_come_back_and_the_configured_lr_wins():
    model = Pair()
    wrapper = wrapper_of(model)
    for _ in range(2):
        wrapper.backward(model(torch.ones(2, 4)).sum())
        wrapper.step("critic")
    state = copy.deepcopy(wrapper.state_dict())
    other = Pair()
    restored = wrapper_of(other, lr=0.5)
    restored.load_state_dict(state)
    assert restored.get_lr() == {"lr": [0.5, 0.5]}
    assert torch.equal(other.generator.weight.grad, model.generator.weight.grad)
    assert other.critic.weight.grad is None
    adam = restored.optimizers["critic"].state[other.critic.weight]
    assert adam["step"] == 2


def test_the_loss_scale_comes_back():
    def fp16():
        optimizer = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
        return OptimWrapper({"default": optimizer}, torch.amp.GradScaler("cpu", enabled=True))

    wrapper = fp16()
    wrapper.backward(wrapper.param_groups[0]["params"][0].sum() * float("inf"))
    assert not wrapper.step()
    restored = fp16()
    restored.load_state_dict(wrapper.state_dict())
    assert restored.scaler.get_scale() == 32768.0


@pytest.mark.parametrize(("factor", "new_scale"), [(float("inf"), 512.0), (1.0, 2048.0)])
def test_the_loss_scale_changes_when_all_optimizers_of_a_backward_have_stepped(factor, new_scale):
    first, second = (nn.Parameter(torch.ones(2)) for _ in range(2))
    optimizers = {name: torch.optim.SGD([p], lr=1.0) for name, p in (("a", first), ("b", second))}
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=1)
    wrapper = OptimWrapper(optimizers, scaler)
    wrapper.backward((first * factor).sum() + second.sum())
    assert wrapper.step("a") is (factor == 1.0)
    wrapper.unscale("b")
    assert second.grad.tolist() == [1.0, 1.0]
    assert wrapper.step("b")
    assert wrapper.state_dict()["scaler"]["scale"] == new_scale
    wrapper.backward(second.sum())
    assert second.grad.tolist() == [new_scale, new_scale]


@pytest.mark.parametrize("fused", [True, False])
def test_a_skipped_first_step_leaves_no_trace(fused):
    weight = nn.Parameter(torch.ones(3))
    optimizer = torch.optim.SGD([weight], lr=0.1, momentum=0.9, fused=fused)
    wrapper = OptimWrapper({"default": optimizer}, torch.amp.GradScaler("cpu", enabled=True))
    wrapper.backward(weight.sum() * float("inf"))
    wrapper.unscale()
    assert not wrapper.step()
    assert weight.tolist() == [1, 1, 1]
    wrapper.backward(weight.sum())
    wrapper.unscale()
    assert wrapper.step()
    assert weight.tolist() == pytest.approx([0.9, 0.9, 0.9])
    assert optimizer.state[weight]["momentum_buffer"].tolist() == [1, 1, 1]

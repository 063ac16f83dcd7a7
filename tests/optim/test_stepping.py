"""A step without torch's ranges is the same step, and whoever would miss them gets them."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import nn
from torch.optim.optimizer import (
    register_optimizer_step_post_hook,
    register_optimizer_step_pre_hook,
)

from hookexp.optim import stepping

OPTIMIZERS = [
    pytest.param(functools.partial(torch.optim.SGD, lr=0.1, momentum=0.9), id="sgd"),
    pytest.param(functools.partial(torch.optim.SGD, lr=0.1, fused=True), id="fused sgd"),
    pytest.param(functools.partial(torch.optim.AdamW, lr=0.1, foreach=True), id="foreach adamw"),
    pytest.param(functools.partial(torch.optim.AdamW, lr=0.1, amsgrad=True), id="adamw"),
]


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Linear(4, 1)


@pytest.fixture
def optimizer(model) -> torch.optim.Optimizer:
    model(torch.ones(4)).backward()
    return torch.optim.SGD(model.parameters(), lr=0.1)


def trained(model, optimizer, step, zero_grad):
    for n in range(3):
        model(torch.full((4,), float(n))).backward()
        step(optimizer)
        zero_grad(optimizer)
        if n == 0:
            assert all(p.grad is None for p in model.parameters())
    return [p.detach().clone() for p in model.parameters()]


@pytest.mark.parametrize("make", OPTIMIZERS)
def test_weights_are_those_of_torchs_own_calls(make):
    ends = []
    for step, zero_grad in (
        (stepping.step, lambda optimizer: stepping.zero_grad(optimizer, True)),
        (lambda optimizer: optimizer.step(), lambda optimizer: optimizer.zero_grad()),
    ):
        torch.manual_seed(0)
        model = nn.Linear(4, 1)
        ends.append(trained(model, make(model.parameters()), step, zero_grad))
    assert all(map(torch.equal, *ends))


def labels(optimizer) -> set[str]:
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        stepping.step(optimizer)
        stepping.zero_grad(optimizer, True)
    return {event.key for event in profiler.key_averages()}


def test_a_profile_shows_the_step(optimizer):
    stepping.step(optimizer)
    assert labels(optimizer) >= {"Optimizer.step#SGD.step", "Optimizer.zero_grad#SGD.zero_grad"}


def test_torchs_range_is_not_opened_for_nobody(optimizer, monkeypatch):
    opened = []

    class Range(torch.autograd.profiler.record_function):
        def __init__(self, name):
            opened.append(name)
            super().__init__(name)

    monkeypatch.setattr(torch.autograd.profiler, "record_function", Range)
    stepping.step(optimizer)
    stepping.zero_grad(optimizer, True)
    assert opened == []
    optimizer.step()
    optimizer.zero_grad()
    assert opened == ["Optimizer.step#SGD.step", "Optimizer.zero_grad#SGD.zero_grad"]


@pytest.mark.parametrize(
    "register",
    [
        lambda optimizer, hook: optimizer.register_step_pre_hook(hook),
        lambda optimizer, hook: optimizer.register_step_post_hook(hook),
        lambda optimizer, hook: register_optimizer_step_pre_hook(hook),
        lambda optimizer, hook: register_optimizer_step_post_hook(hook),
    ],
    ids=["before it", "after it", "before all", "after all"],
)
def test_torchs_own_hooks_are_called(optimizer, register):
    calls = []
    handle = register(optimizer, lambda *_: calls.append("called"))
    try:
        stepping.step(optimizer)
    finally:
        handle.remove()
    stepping.step(optimizer)
    assert calls == ["called"]


def test_methods_that_were_replaced_are_called(optimizer):
    calls = []
    optimizer.step = lambda: calls.append("step")
    optimizer.zero_grad = lambda set_to_none: calls.append(set_to_none)
    stepping.step(optimizer)
    stepping.zero_grad(optimizer, True)
    assert calls == ["step", True]


def test_methods_that_were_replaced_for_all_optimizers_are_called(optimizer, monkeypatch):
    calls = []
    monkeypatch.setattr(torch.optim.SGD, "step", lambda self: calls.append("step"))
    monkeypatch.setattr(
        torch.optim.Optimizer, "zero_grad", lambda self, set_to_none: calls.append(set_to_none)
    )
    stepping.step(optimizer)
    stepping.zero_grad(optimizer, True)
    assert calls == ["step", True]


def test_what_a_class_does_around_its_step_is_done(model):
    calls = []

    def noted(method):
        @functools.wraps(method)
        def call(self, *args, **kwargs):
            calls.append(method.__name__)
            return method(self, *args, **kwargs)

        return call

    torch.optim.SGD(model.parameters(), lr=0.1)  # Its step is wrapped by torch from here on.

    class Noted(torch.optim.SGD):
        step = noted(torch.optim.SGD.step)
        zero_grad = noted(torch.optim.SGD.zero_grad)

    optimizer = Noted(model.parameters(), lr=0.1)
    stepping.step(optimizer)
    stepping.zero_grad(optimizer, True)
    assert calls == ["step", "zero_grad"]


def test_gradients_may_be_kept_as_zeros(model, optimizer):
    stepping.zero_grad(optimizer, False)
    assert all(torch.equal(p.grad, torch.zeros_like(p)) for p in model.parameters())

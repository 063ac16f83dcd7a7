"""Norms against those of autograd's own gradients, in real runs."""

from __future__ import annotations

import math

import pytest
import torch
from fakes import TinyTask

from hookexp.hook import Hook
from hookexp.hooks.grad_norm import GradNormHook


class Trace(Hook):
    """The gradients that each optimizer step found, by name."""

    def __init__(self):
        self.gradients = []

    def before_optim_step(self, runner):
        self.gradients.append(
            {n: p.grad.clone() for n, p in runner.model.named_parameters() if p.grad is not None}
        )

    def norm(self, step, prefix="", order=2.0):
        parts = [g.flatten() for n, g in self.gradients[step].items() if n.startswith(prefix)]
        return torch.linalg.vector_norm(torch.cat(parts), order).item()


def measured(make_runner, hook, **more):
    trace = Trace()
    runner = make_runner({"grad_norm": hook, "trace": trace}, **{"max_epochs": 2, **more})
    runner.run("train")
    return runner.message_hub, trace


@pytest.mark.parametrize("order", [2.0, 1.0, math.inf])
def test_total_and_layers_are_those_of_the_last_measured_step(make_runner, order):
    hook = GradNormHook(interval=4, per_layer=True, norm_type=order)
    hub, trace = measured(make_runner, hook)
    assert len(trace.gradients) == 6
    read = hub.read("train/grad_norm", 10)
    assert set(read) == {"", "/inner", "/norm", "/outer"}
    for name, value in read.items():
        assert value == pytest.approx(trace.norm(3, name.removeprefix("/"), order), rel=1e-5)


def test_layers_are_left_out_unless_asked_for(make_runner):
    hub, trace = measured(make_runner, GradNormHook(interval=1))
    assert hub.read("train/grad_norm", 10) == {"": pytest.approx(trace.norm(5), rel=1e-5)}


def test_the_norm_is_taken_before_clipping_which_logs_the_total_itself(make_runner):
    trace = Trace()
    hook = GradNormHook(interval=1, per_layer=True)
    runner = make_runner({"grad_norm": hook, "trace": trace}, max_epochs=1)
    runner.hooks["optimizer"].grad_clip = {"max_norm": 0.01}
    runner.run("train")
    totals = runner.message_hub.get_scalar("train/grad_norm").recent()
    assert [float(t) for t in totals] == pytest.approx([trace.norm(i) for i in range(3)], rel=1e-5)
    layer = runner.message_hub.get_scalar("train/grad_norm/inner").current()
    assert layer == pytest.approx(trace.norm(2, "inner"), rel=1e-5)


def test_parameters_without_gradient_do_not_count(make_runner):
    class OuterOnly(TinyTask):
        def train_step(self, model, batch):
            return {"loss": (model.outer.weight**2).sum()}

    hook = GradNormHook(interval=1, per_layer=True)
    hub, trace = measured(make_runner, hook, task=OuterOnly())
    assert set(hub.read("train/grad_norm", 1)) == {"", "/outer"}
    assert hub.get_scalar("train/grad_norm").current() == pytest.approx(trace.norm(5), rel=1e-5)


def test_without_any_gradient_there_is_nothing_to_log(make_runner):
    class Steps(TinyTask):
        def setup(self, runner):
            self.runner = runner

        def train_step(self, model, batch):
            self.runner.optimizer_step()
            return super().train_step(model, batch)

    hub, _ = measured(make_runner, GradNormHook(interval=1), task=Steps(), with_optimizer=False)
    assert "train/grad_norm" not in hub.scalars


def test_sparse_gradients_and_parameters_of_the_model_itself(make_runner):
    class Words(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.table = torch.nn.Embedding(10, 3, sparse=True)
            self.bias = torch.nn.Parameter(torch.zeros(3))
            self.nothing = torch.nn.Parameter(torch.zeros(0))

        def forward(self, inputs):
            ids = torch.tensor([1, 1, 2])
            return (self.table(ids) + self.bias).sum() + self.nothing.sum() + 0 * inputs.sum()

    class Sum(TinyTask):
        def train_step(self, model, batch):
            return {"loss": model(batch[0])}

    hook = GradNormHook(interval=1, per_layer=True)
    hub, _ = measured(make_runner, hook, model=Words(), task=Sum(), max_epochs=1, val_size=0)
    read = hub.read("train/grad_norm", 1)
    # The row that is used twice has gradient 2, the other 1, the bias 3, each in three places.
    assert read["/table"] == pytest.approx(math.sqrt(3 * (4 + 1)))
    assert read["/model"] == pytest.approx(math.sqrt(3 * 9))
    assert read[""] == pytest.approx(math.sqrt(3 * 14))
    hook = GradNormHook(interval=1, norm_type=math.inf)
    hub, _ = measured(make_runner, hook, model=Words(), task=Sum(), max_epochs=1, val_size=0)
    assert hub.get_scalar("train/grad_norm").current() == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "interval=0: use a whole number of steps"),
        ({"norm_type": 0}, "norm_type=0: use a number above 0"),
        ({"norm_type": math.nan}, "norm_type=nan: use a number above 0"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GradNormHook(**arguments)

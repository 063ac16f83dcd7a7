"""Statistics of layers against those computed by hand, and hooks that come and go."""

from __future__ import annotations

import pytest
import torch
from fakes import TinyModel, TinyTask
from torch import nn

from hookexp.errors import ConfigError
from hookexp.hook import Hook, Priority
from hookexp.hooks.activations import ActivationsHook
from hookexp.hooks.sam import SamHook


class Trace(Hook):
    """The batch and a copy of the model before each iteration, and who has hooks in it."""

    priority = Priority.LOWEST

    def __init__(self):
        self.batches = []
        self.states = []
        self.hooked = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        self.batches.append(data_batch)
        self.states.append({k: v.clone() for k, v in runner.model.state_dict().items()})
        modules = runner.model.named_modules()
        self.hooked.append([name for name, m in modules if m._forward_hooks or m._backward_hooks])


def run(make_runner, hook, **more):
    trace = Trace()
    runner = make_runner({"activations": hook, "trace": trace}, **{"max_epochs": 2, **more})
    runner.run("train")
    return runner, trace


def statistics(tensor):
    return {
        "mean": tensor.mean().item(),
        "std": tensor.std(correction=0).item(),
        "zeros": (tensor == 0).float().mean().item(),
        "nonfinite": (~tensor.isfinite()).float().mean().item(),
    }


class ReluModel(TinyModel):
    """A ReLU that works in place, and layers that return a tuple, and a dict."""

    def __init__(self):
        super().__init__()
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Sequential(self.inner, self.norm)
        self.pair = Pair()

    def forward(self, inputs):
        hidden = self.relu(self.block(inputs))
        _, named = self.pair(hidden)
        return self.outer(named["b"])


class Pair(nn.Module):
    def forward(self, x):
        return 3, {"a": None, "b": x * 2}


def test_outputs_and_gradients_of_the_last_measured_iteration(make_runner):
    hook = ActivationsHook(modules=["inner", "relu", "p*r"], interval=4, gradients=True)
    runner, trace = run(make_runner, hook, model=ReluModel())
    model = ReluModel()
    model.load_state_dict(trace.states[3])
    inputs, targets = trace.batches[3]
    inner = model.inner(inputs)
    relu = model.relu(model.norm(inner) + 0)
    pair = relu * 2
    loss = nn.functional.mse_loss(model.outer(pair), targets)
    outputs = {"inner": inner, "relu": relu, "pair": pair}
    gradients = torch.autograd.grad(loss, list(outputs.values()))
    for (name, output), gradient in zip(outputs.items(), gradients, strict=True):
        read = runner.message_hub.read(f"train/activations/{name}/", 100)
        assert read == pytest.approx(statistics(output.detach()), rel=1e-4, abs=1e-6)
        read = runner.message_hub.read(f"train/activation_gradients/{name}/", 100)
        assert read == pytest.approx(statistics(gradient), rel=1e-4, abs=1e-6)
    assert runner.message_hub.get_scalar("train/activations/relu/zeros").current() > 0.2


def test_with_sam_they_are_those_of_the_weights_as_they_are(make_runner):
    hook = ActivationsHook(["inner"], interval=1, gradients=True)
    more = {"max_epochs": 1, "train_size": 8}
    plain, _ = run(make_runner, hook, **more)
    trained_by_sam = make_runner(
        {"optimizer": SamHook(rho=2.0), "activations": hook}, with_optimizer=False, **more
    )
    trained_by_sam.run("train")
    for prefix in ("train/activations/", "train/activation_gradients/"):
        expected = plain.message_hub.read(prefix, 100)
        assert expected["inner/std"] > 0
        assert trained_by_sam.message_hub.read(prefix, 100) == expected


def test_broken_values_are_counted(make_runner):
    class Breaks(TinyTask):
        def train_step(self, model, batch):
            inputs = batch[0].clone()
            inputs[:2] = torch.inf
            return super().train_step(model, (inputs, batch[1]))

    hook = ActivationsHook(["inner"], interval=1)
    runner, _ = run(make_runner, hook, task=Breaks(), train_size=8, max_epochs=1)
    assert runner.message_hub.get_scalar("train/activations/inner/nonfinite").current() == 0.25


def test_hooks_are_there_in_measured_iterations_only(make_runner):
    runner, trace = run(make_runner, ActivationsHook(["inner", "norm"], interval=3))
    assert trace.hooked == [[], [], ["inner", "norm"]] * 2
    assert not any(m._forward_hooks for m in runner.model.modules())
    assert len(runner.message_hub.get_scalar("train/activations/norm/std").recent()) == 1
    assert not any("gradients" in key for key in runner.message_hub.scalars)


def test_evaluations_are_not_measured(make_runner):
    runner = make_runner({"activations": ActivationsHook(interval=1)})
    runner.run("val")
    assert not any(key.startswith("train/activations") for key in runner.message_hub.scalars)


def test_training_is_the_same_with_it(make_runner):
    with_it, _ = run(make_runner, ActivationsHook(interval=1, gradients=True))
    without = make_runner({"trace": Trace()}, max_epochs=2)
    without.run("train")
    ours, theirs = with_it.model.state_dict(), without.model.state_dict()
    assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_after_an_error_no_hook_is_left(make_runner):
    class Fails(TinyTask):
        def train_step(self, model, batch):
            raise RuntimeError("boom")

    runner = make_runner({"activations": ActivationsHook(interval=1)}, task=Fails(), max_epochs=1)
    with pytest.raises(RuntimeError, match="boom"):
        runner.run("train")
    assert not any(m._forward_hooks for m in runner.model.modules())


def test_outputs_without_numbers_are_passed_over(make_runner):
    class Strange(TinyModel):
        def __init__(self):
            super().__init__()
            self.odd = Odd()

        def forward(self, inputs):
            assert self.odd(inputs) == "text"
            return super().forward(inputs)

    class Odd(nn.Module):
        def forward(self, inputs):
            return "text"

    runner, _ = run(make_runner, ActivationsHook(["odd", "inner"], interval=1), model=Strange())
    keys = {k.split("/")[2] for k in runner.message_hub.scalars if "activations" in k}
    assert keys == {"inner"}


def test_a_pattern_of_no_module_is_an_error_with_the_modules(make_runner):
    runner = make_runner({"activations": ActivationsHook(["inner", "head.*"])}, max_epochs=1)
    with pytest.raises(ConfigError, match=r"'head\.\*' is .* no module; there are: inner, norm"):
        runner.run("train")


def test_a_compiled_model_is_refused(make_runner):
    runner = make_runner({"activations": ActivationsHook()}, max_epochs=1, compile=True)
    with pytest.raises(ConfigError, match=r"use trainer\.compile=false"):
        runner.run("train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "interval=0: use a whole number of iterations"),
        ({"modules": []}, r"modules=\[\]: use a list of name patterns"),
        ({"modules": "inner"}, "modules='inner': use a list of name patterns"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ActivationsHook(**arguments)

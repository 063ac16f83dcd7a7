"""Two passes and one step, against the formula written out for each parameter."""

from __future__ import annotations

import copy

import pytest
import torch
from fakes import Recorder, TinyData, TinyModel, TinyTask
from hydra import compose
from torch import nn

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_hooks
from hookexp.compose.conf_dir import with_hydra
from hookexp.data.sampler import BatchSampler
from hookexp.hook import Hook, Priority
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.freeze import FreezeHook
from hookexp.hooks.sam import SamHook
from hookexp.hooks.sampler_seed import DistSamplerSeedHook


def by_hand(model, rho, adaptive, max_norm=None):
    """One epoch of SAM with SGD, one parameter after the other."""
    data = TinyData(24)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    parameters = list(model.parameters())

    def gradients(indices):
        optimizer.zero_grad()
        nn.functional.mse_loss(model(data.inputs[indices]), data.targets[indices]).backward()
        return [p.grad.clone() for p in parameters]

    for indices, _ in BatchSampler(24, 8, seed=0, shuffle=True).batches():
        first = gradients(indices)
        statistics = copy.deepcopy(model.norm.state_dict())
        scaled = [(p.abs() if adaptive else 1) * g for p, g in zip(parameters, first, strict=True)]
        length = sum(s.square().sum() for s in scaled).sqrt()
        before = [p.detach().clone() for p in parameters]
        with torch.no_grad():
            for p, g in zip(parameters, first, strict=True):
                p += rho * (p.square() if adaptive else 1) * g / length
        gradients(indices)
        running = {k: v for k, v in statistics.items() if k not in ("weight", "bias")}
        model.norm.load_state_dict(running, strict=False)
        with torch.no_grad():
            for p, b in zip(parameters, before, strict=True):
                p.copy_(b)
        if max_norm is not None:
            nn.utils.clip_grad_norm_(parameters, max_norm)
        optimizer.step()
    return model


def run(make_runner, hook, model=None, **more):
    hooks = {"optimizer": hook, "seed": DistSamplerSeedHook(), **more.pop("hooks", {})}
    runner = make_runner(hooks, with_optimizer=False, model=model or TinyModel(), **more)
    runner.run("train")
    return runner


@pytest.mark.parametrize(
    "arguments",
    [
        {"rho": 0.5},
        {"rho": 0.5, "adaptive": True},
        {"rho": 0.5, "grad_clip": {"max_norm": 0.01}, "set_to_none": False},
    ],
)
def test_steps_equal_the_formula(make_runner, arguments):
    torch.manual_seed(0)
    model = TinyModel()
    expected = by_hand(
        copy.deepcopy(model),
        arguments["rho"],
        arguments.get("adaptive", False),
        arguments.get("grad_clip", {}).get("max_norm"),
    )
    plain = copy.deepcopy(model)
    run(make_runner, SamHook(**arguments), model, max_epochs=1)
    for key, value in expected.state_dict().items():
        assert torch.allclose(model.state_dict()[key], value, atol=1e-6), key
    run(make_runner, SamHook(rho=1e-9), plain, max_epochs=1)
    assert not torch.allclose(plain.outer.weight, model.outer.weight, atol=1e-4)


def test_the_optim_points_fire_once_per_step(make_runner):
    recorder = Recorder()
    runner = run(make_runner, SamHook(), hooks={"recorder": recorder}, max_epochs=2)
    assert recorder.points.count("before_optim_step") == 6
    assert recorder.points.count("after_optim_step") == 6
    assert runner.state.optim_steps == 6


def test_the_logged_loss_is_that_of_the_weights_as_they_are(make_runner):
    losses = []

    class Noting(TinyTask):
        def train_step(self, model, batch):
            outputs = super().train_step(model, batch)
            losses.append(outputs["loss"].item())
            return outputs

    class Watch(Recorder):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.calls.append(outputs["loss"].item())

    watch = Watch()
    run(make_runner, SamHook(rho=0.5), hooks={"watch": watch}, task=Noting(), max_epochs=1)
    seen = [call for call in watch.calls if isinstance(call, float)]
    assert seen == losses[::2]
    assert all(worse > loss for loss, worse in zip(losses[::2], losses[1::2], strict=True))


def test_a_resume_goes_on_as_if_nothing_had_happened(make_runner, tmp_path):
    def part(folder, **more):
        hooks = {"checkpoint": CheckpointHook()}
        return run(make_runner, SamHook(), hooks=hooks, work_dir=tmp_path / folder, **more)

    whole = part("whole", max_epochs=2)
    part("parts", max_epochs=1)
    rest = part("parts", max_epochs=2, resume="auto")
    for one, two in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_in_fp16_an_overflow_of_the_first_pass_skips_the_step(make_runner):
    class Overflowing(TinyTask):
        steps = 0

        def train_step(self, model, batch):
            self.steps += 1
            outputs = super().train_step(model, batch)
            factor = float("inf") if self.steps == 1 else 1.0
            return {"loss": outputs["loss"] * factor}

    task = Overflowing()
    runner = run(make_runner, SamHook(), task=task, train_size=8, max_epochs=1, precision="fp16")
    assert task.steps == 2
    assert runner.state.optim_steps == 0
    assert all(value.isfinite().all() for value in runner.model.state_dict().values())
    assert torch.equal(runner.model.norm.weight, torch.ones(8))


def test_an_error_of_the_second_pass_leaves_the_weights_as_they_are(make_runner, tmp_path):
    class Fails(TinyTask):
        steps = 0

        def train_step(self, model, batch):
            self.steps += 1
            outputs = super().train_step(model, batch)
            if self.steps == 4:
                raise RuntimeError("out of memory")
            return outputs

    class Trace(Hook):
        """What the first pass of an iteration has left."""

        priority = Priority.HIGHEST

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.state = copy.deepcopy(runner.model.state_dict())

    trace = Trace()
    hooks = {"trace": trace, "checkpoint": CheckpointHook(save_on_exception=True)}
    with pytest.raises(RuntimeError, match="out of memory"):
        run(make_runner, SamHook(rho=1.0), task=Fails(), hooks=hooks, max_epochs=1)
    (path,) = (tmp_path / "run").glob("exception_*.pth")
    saved = torch.load(path, weights_only=True)["state_dict"]
    for key, value in trace.state.items():
        assert torch.equal(saved[key], value), key


def test_frozen_weights_have_no_part_in_the_way_up(make_runner):
    """Nor with DDP, where they go on having gradients until the step."""

    class Wrapped(FreezeHook):
        def _set_requires_grad(self, value):
            super()._set_requires_grad(True)

    def weights(freeze):
        hooks = {"freeze": freeze(["outer"], until_iter=2)}
        return run(make_runner, SamHook(rho=1.0), hooks=hooks, max_iters=4).model.state_dict()

    alone, wrapped = weights(FreezeHook), weights(Wrapped)
    assert all(torch.equal(value, wrapped[key]) for key, value in alone.items())


def test_it_is_an_option_of_the_optimizer_hook():
    with with_hydra():
        hooks = build_hooks(compose("config", overrides=["hooks/optimizer=sam"]))
    assert type(hooks["optimizer"]) is SamHook
    assert hooks["optimizer"].rho == 0.05


def test_a_task_without_a_loss_is_told(make_runner):
    class NoLoss(TinyTask):
        def train_step(self, model, batch):
            return {"los": super().train_step(model, batch)["loss"]}

    with pytest.raises(ValueError, match=r"scalar tensor 'loss'; it returned \['los'\]"):
        run(make_runner, SamHook(), task=NoLoss(), max_epochs=1)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rho": 0}, "rho=0: use"),
        ({"grad_clip": {"max_norm": -1}}, "grad_clip.max_norm=-1: use"),
        ({"cumulative_iters": 4}, "cumulative_iters=4: sam .* larger data.batch_size"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SamHook(**arguments)

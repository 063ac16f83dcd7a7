"""The optimizer step against the same steps written by hand, in real runs."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from fakes import Recorder, TinyData, TinyModel, TinyTask
from torch import nn

from hookexp.errors import ConfigError
from hookexp.hook import Hook, Priority
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.optimizer import OptimizerHook
from hookexp.hooks.param_scheduler import ParamSchedulerHook
from hookexp.hooks.sam import SamHook
from hookexp.hooks.sampler_seed import DistSamplerSeedHook
from hookexp.optim.param_schedulers import LinearParamScheduler


class Plain(nn.Module):
    """No batch norm, so that micro-batches add up to the batch."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 1)

    def forward(self, inputs):
        return self.layer(inputs)


def run(make_runner, hook, model, **settings):
    runner = make_runner(
        {"optimizer": hook}, with_optimizer=False, model=model, val_size=0, **settings
    )
    runner.run("train")
    return runner


def by_hand(model, windows, clip=lambda parameters: None, lr=0.1):
    """SGD with momentum on windows of batches, in the order of an unshuffled epoch 0."""
    from hookexp.data.sampler import BatchSampler

    data = TinyData(24)
    batches = [i for i, _ in BatchSampler(24, 8, seed=0, shuffle=True).batches()]
    optimizer = torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)
    for window in windows:
        for index in window:
            loss = nn.functional.mse_loss(
                model(data.inputs[batches[index]]), data.targets[batches[index]]
            )
            (loss / len(window)).backward()
        clip(list(model.parameters()))
        optimizer.step()
        optimizer.zero_grad()
    return model


@pytest.mark.parametrize(
    ("arguments", "windows", "clip"),
    [
        ({}, [[0], [1], [2]], lambda p: None),
        ({"cumulative_iters": 2}, [[0, 1], [2]], lambda p: None),
        ({"cumulative_iters": [[0, 1], [1, 2]]}, [[0], [1, 2]], lambda p: None),
        ({"cumulative_iters": [[0, 2], [1, 4]]}, [[0], [1, 2]], lambda p: None),
        (
            {"grad_clip": {"max_norm": 0.1, "norm_type": 2}},
            [[0], [1], [2]],
            lambda p: nn.utils.clip_grad_norm_(p, 0.1),
        ),
        (
            {"grad_clip": {"clip_value": 0.01, "max_norm": None}},
            [[0], [1], [2]],
            lambda p: nn.utils.clip_grad_value_(p, 0.01),
        ),
    ],
)
def test_steps_equal_those_written_by_hand(make_runner, arguments, windows, clip):
    torch.manual_seed(0)
    model = Plain()
    expected = by_hand(copy.deepcopy(model), windows, clip)
    run(make_runner, OptimizerHook(**arguments), model, max_epochs=1)
    for got, wanted in zip(model.parameters(), expected.parameters(), strict=True):
        assert torch.equal(got, wanted)


def test_windows_go_on_over_epochs_and_fire_the_optim_points_once_each(make_runner):
    recorder = Recorder()
    runner = make_runner(
        {"optimizer": OptimizerHook(cumulative_iters=2), "recorder": recorder},
        with_optimizer=False,
        model=Plain(),
        max_epochs=3,
    )
    runner.run("train")
    steps = [it for point, _, it in recorder.calls if point == "after_optim_step"]
    assert steps == [1, 3, 5, 7, 8]
    assert runner.state.optim_steps == 5


def test_windows_that_change_are_counted_for_the_schedules(make_runner):
    recorder = Recorder()
    schedule = LinearParamScheduler(start_factor=0.5, by_epoch=False)
    runner = make_runner(
        {
            "optimizer": OptimizerHook(cumulative_iters=[[0, 1], [2, 3], [4, 2]]),
            "param_scheduler": ParamSchedulerHook(),
            "recorder": recorder,
        },
        with_optimizer=False,
        model=Plain(),
        param_schedulers={"warmup": schedule},
        max_epochs=3,
    )
    runner.run("train")
    steps = [it for point, _, it in recorder.calls if point == "after_optim_step"]
    assert steps == [0, 1, 3, 5, 7, 8]
    assert schedule.length == runner.state.optim_steps == 6


@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_resume_inside_a_window_that_changes(make_runner, tmp_path, stop):
    class Stop(Hook):
        priority = 95

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter + 1 == stop and not runner.resumed:
                runner.state.stop("test", urgent=True)

    def weights(folder, stop_hooks, **more):
        hooks = {
            "optimizer": OptimizerHook(cumulative_iters=[[0, 1], [1, 3], [5, 2]]),
            "seed": DistSamplerSeedHook(),
            "checkpoint": CheckpointHook(),
            **stop_hooks,
        }
        torch.manual_seed(0)
        runner = make_runner(
            hooks, with_optimizer=False, model=Plain(), work_dir=folder, max_epochs=3, **more
        )
        runner.run("train")
        return list(runner.model.parameters())

    whole = weights(tmp_path / "whole", {})
    weights(tmp_path / "cut", {"stop": Stop()})
    rest = weights(tmp_path / "cut", {}, resume="auto")
    assert all(torch.equal(a, b) for a, b in zip(whole, rest, strict=True))


def test_the_gradient_norm_is_logged_before_clipping(make_runner):
    seen = []

    class Watch(Hook):
        priority = Priority.LOWEST

        def before_optim_step(self, runner):
            grads = [p.grad for p in runner.model.parameters()]
            seen.append(torch.linalg.vector_norm(torch.cat([g.flatten() for g in grads])).item())

    runner = make_runner(
        {"optimizer": OptimizerHook(grad_clip={"max_norm": 0.1}), "watch": Watch()},
        with_optimizer=False,
        model=Plain(),
        max_epochs=1,
    )
    runner.run("train")
    logged = [float(v) for v in runner.message_hub.get_scalar("train/grad_norm").values]
    assert logged == pytest.approx(seen)


def test_fp16_skips_a_step_that_is_not_finite_and_does_not_count_it(make_runner):
    class Overflow(Hook):
        priority = Priority.HIGHEST

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 3:
                outputs["loss"] = outputs["loss"] * float("inf")

    model = Plain()
    recorder = Recorder()
    runner = make_runner(
        {"overflow": Overflow(), "optimizer": OptimizerHook(), "recorder": recorder},
        with_optimizer=False,
        model=model,
        max_epochs=2,
        precision="fp16",
    )
    runner.run("train")
    stepped = [it for point, _, it in recorder.calls if point == "after_optim_step"]
    # The first scale, 65536, is too large for this loss and is halved by skipped steps as well.
    assert 3 not in stepped and {4, 5} <= set(stepped)
    assert runner.state.optim_steps == len(stepped)
    assert runner.optim_wrapper.scaler.get_scale() == 65536.0 / 2 ** (6 - len(stepped))
    assert all(torch.isfinite(p).all() for p in model.parameters())


def test_gradients_are_unscaled_when_hooks_see_them(make_runner):
    norms = {}

    class Watch(Hook):
        def before_optim_step(self, runner):
            grads = [p.grad.flatten() for p in runner.model.parameters()]
            norms.setdefault(runner.settings.precision, []).append(torch.cat(grads).norm().item())

    for precision in ("fp32", "fp16"):
        torch.manual_seed(0)
        hooks = {"optimizer": OptimizerHook(loss_scale=256.0), "watch": Watch()}
        runner = make_runner(
            hooks, with_optimizer=False, model=Plain(), max_epochs=1, precision=precision
        )
        runner.run("train")
    assert norms["fp16"] == pytest.approx(norms["fp32"], rel=0.02)


def test_a_fixed_loss_scale_stays(make_runner):
    runner = run(make_runner, OptimizerHook(loss_scale=128.0), Plain(), precision="fp16")
    assert runner.optim_wrapper.scaler.get_scale() == 128.0


@pytest.mark.parametrize(
    ("before", "now", "scale"),
    [("dynamic", 128.0, 128.0), (128.0, "dynamic", 65536.0), (128.0, 64.0, 64.0)],
)
def test_the_loss_scale_of_a_resumed_run_is_what_the_config_says_now(
    make_runner, before, now, scale
):
    first = run(
        make_runner, OptimizerHook(loss_scale=before), Plain(), precision="fp16", max_epochs=1
    )
    first.save_checkpoint("a.pth")
    first.checkpointer.save_requested()
    first.writer.wait()
    scales = []

    class Watch(Hook):
        def before_train(self, runner):
            scaler = runner.optim_wrapper.scaler
            scales.append((scaler.get_scale(), scaler.get_growth_factor()))

    hooks = {"optimizer": OptimizerHook(loss_scale=now), "watch": Watch()}
    make_runner(
        hooks,
        with_optimizer=False,
        model=Plain(),
        precision="fp16",
        max_epochs=2,
        resume=str(first.work_dir / "a.pth"),
    ).run("train")
    assert scales == [(scale, 2.0 if now == "dynamic" else 1.0)]


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_half_precision_learns_on_the_cpu(make_runner, precision):
    runner = run(make_runner, OptimizerHook(), Plain(), max_epochs=10, precision=precision)
    data = TinyData(24)
    loss = nn.functional.mse_loss(runner.model(data.inputs), data.targets)
    assert loss < 0.3
    assert all(p.dtype == torch.float32 for p in runner.model.parameters())


@pytest.mark.parametrize("set_to_none", [True, False])
def test_gradients_are_freed_or_zeroed(make_runner, set_to_none):
    runner = run(make_runner, OptimizerHook(set_to_none=set_to_none), Plain(), max_epochs=1)
    assert all((p.grad is None) == set_to_none for p in runner.model.parameters())


def test_parameters_that_took_no_part_in_the_loss_are_named(make_runner, caplog):
    class HalfUsed(Plain):
        def __init__(self):
            super().__init__()
            self.unused = nn.Linear(2, 2)

    with caplog.at_level(logging.WARNING):
        run(make_runner, OptimizerHook(detect_anomalous_params=True), HalfUsed(), max_epochs=1)
    assert caplog.text.count("unused.bias, unused.weight") == 1


def test_batch_norm_with_accumulation_warns(make_runner, caplog):
    run(make_runner, OptimizerHook(cumulative_iters=2), TinyModel(), max_epochs=1)
    assert "batch norm" in caplog.text


def test_a_task_that_steps_by_itself(make_runner):
    class SelfStepping(TinyTask):
        def setup(self, runner):
            self.runner = runner

        def train_step(self, model, batch):
            outputs = super().train_step(model, batch)
            outputs["loss"].backward()
            self.runner.optimizer_step()
            return outputs

    recorder = Recorder()
    runner = make_runner(
        {"recorder": recorder}, with_optimizer=False, task=SelfStepping(), max_epochs=1
    )
    runner.run("train")
    assert recorder.points.count("before_optim_step") == 3
    assert runner.state.optim_steps == 3


def test_a_task_without_a_loss_is_told(make_runner):
    class NoLoss(TinyTask):
        def train_step(self, model, batch):
            return {"los": super().train_step(model, batch)["loss"]}

    with pytest.raises(ValueError, match=r"scalar tensor 'loss'; it returned \['los'\]"):
        make_runner(task=NoLoss(), max_epochs=1).run("train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"cumulative_iters": 0}, "cumulative_iters=0: use a whole number"),
        ({"cumulative_iters": 1.5}, "cumulative_iters=1.5"),
        ({"loss_scale": "static"}, "loss_scale=static: use 'dynamic' or a number"),
        ({"grad_clip": {"max_nrm": 1}}, "grad_clip.max_nrm: use max_norm, norm_type"),
        ({"grad_clip": {"max_norm": -1}}, "grad_clip.max_norm=-1: use a number above 0"),
        ({"grad_clip": {"max_norm": 1, "clip_value": 1}}, "not both"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        OptimizerHook(**arguments)


def test_the_largest_gradient_may_be_the_norm_also_as_yaml_writes_it():
    hook = OptimizerHook(grad_clip={"max_norm": 1.0, "norm_type": "inf"})
    assert hook.grad_clip["norm_type"] == float("inf")


@pytest.mark.parametrize(
    ("hook", "message"),
    [
        (OptimizerHook(cumulative_iters=[[0, 1], [5, 2]]), r"cumulative_iters=\[\[0, 1\], \[5, 2"),
        (OptimizerHook(set_to_none=False), r"set_to_none=false"),
        (SamHook(set_to_none=False), r"set_to_none=false"),
    ],
)
def test_gradients_that_torchs_graphs_would_overwrite_are_not_kept(make_runner, hook, message):
    runner = make_runner(compile="reduce-overhead")
    hook.before_run(runner)
    runner.device = torch.device("cuda")
    OptimizerHook().before_run(runner)
    with pytest.raises(
        ConfigError, match=rf"hooks\.optimizer\.{message}.*use trainer\.compile=true"
    ):
        hook.before_run(runner)

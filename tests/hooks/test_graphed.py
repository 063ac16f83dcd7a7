"""What a graphed step refuses, and that its step is the usual one. The graph itself: tests/gpu."""

from __future__ import annotations

import copy
from contextlib import contextmanager

import pytest
import torch
from fakes import Recorder, TinyModel, TinyTask

from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.hook_list import HookList
from hookexp.hooks import graphed
from hookexp.hooks.grad_norm import GradNormHook
from hookexp.hooks.graphed import GraphedOptimizerHook
from hookexp.hooks.optimizer import OptimizerHook
from hookexp.hooks.param_scheduler import ParamSchedulerHook
from hookexp.hooks.precise_bn import PreciseBnHook
from hookexp.optim.param_schedulers import ConstantParamScheduler, LinearParamScheduler
from hookexp.optim.wrapper import OptimWrapper


def built(make_runner, hooks=None, **arguments):
    """A run whose device is a GPU by name: all that is refused is refused before it is used."""
    hooks = {"optimizer": GraphedOptimizerHook(), **(hooks or {})}
    runner = make_runner(hooks, with_optimizer=False, max_iters=3, val_size=0, **arguments)
    fused = torch.optim.SGD(runner.model.parameters(), momentum=0.9, fused=True)
    runner.optim_wrapper = OptimWrapper({"default": fused}, runner.optim_wrapper.scaler)
    runner.device = torch.device("cuda")
    return runner


def test_a_cpu_is_refused(make_runner):
    runner = built(make_runner)
    runner.device = torch.device("cpu")
    message = r"hooks\.optimizer .*trainer\.device=cpu is the CPU here.*hooks/optimizer=default"
    with pytest.raises(ConfigError, match=message):
        runner.run("train")
    assert runner.iter == 0


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"precision": "fp16"}, r"precision=fp16 asks .*use trainer\.precision=bf16"),
        ({"compile": "reduce-overhead"}, r"compile=reduce-overhead makes CUDA graphs"),
        ({"compile": {"mode": "max-autotune"}}, r"max-autotune'} makes CUDA graphs"),
        ({"activation_checkpointing": ["inner"]}, r"activation_checkpointing saves the state"),
    ],
)
def test_settings_that_are_refused(make_runner, settings, message):
    with pytest.raises(ConfigError, match=message):
        built(make_runner, **settings).run("train")


def test_listeners_between_backward_and_step_are_refused_by_name(make_runner):
    runner = built(make_runner, {"grad_norm": GradNormHook(), "recorder": Recorder()})
    message = r"hooks\.grad_norm, hooks\.recorder would be called; drop hooks=-grad_norm-recorder"
    with pytest.raises(ConfigError, match=message):
        runner.run("train")


def test_schedules_of_all_but_lr_are_refused(make_runner):
    schedules = {
        "warmup": LinearParamScheduler(),
        "mom": ConstantParamScheduler(param_name="momentum"),
    }
    with pytest.raises(ConfigError, match=r"param_scheduler\.mom moves momentum"):
        built(make_runner, param_schedulers=schedules).run("train")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: {"default": torch.optim.Adagrad(p)}, "Adagrad cannot be captured"),
        (lambda p: {"default": torch.optim.SGD(p, fused=False)}, r"use optimizer\.fused=true"),
        (
            lambda p: {"one": torch.optim.SGD(p[:2]), "two": torch.optim.SGD(p[2:])},
            "captures one optimizer, and the config has one, two",
        ),
    ],
)
def test_optimizers_that_are_refused(make_runner, make, message):
    runner = built(make_runner)
    optimizers = make(list(runner.model.parameters()))
    runner.optim_wrapper = OptimWrapper(optimizers, torch.amp.GradScaler("cpu", enabled=False))
    with pytest.raises(ConfigError, match=message):
        runner.run("train")


def test_numbers_of_python_among_the_outputs_are_refused(make_runner, monkeypatch):
    class WithNumber(TinyTask):
        def train_step(self, model, batch):
            return {**super().train_step(model, batch), "half": 0.5}

    monkeypatch.setattr(graphed, "refuse_what_no_graph_holds", lambda runner: None)
    runner = built(make_runner, task=WithNumber())
    runner.device = torch.device("cpu")
    with pytest.raises(ConfigError, match=r"train_step returned 'half' of type float"):
        runner.run("train")


class Replay:
    """In the place of a graph: the step itself, on the buffers that were captured."""

    def __init__(self, step, model):
        self.step, self.model, self.size, self.num_replays = step, model, len(step._inputs[0]), 0

    def replay(self):
        self.num_replays += 1
        self.step._outputs = self.step._step(self.model, self.step._inputs)


@pytest.mark.parametrize("sizes", [[2, 4, 4, 4, 4, 4, 2, 4], [4, 4, 2, 4, 4, 2, 4, 4]])
def test_the_graph_is_of_the_shape_that_comes_most(make_runner, monkeypatch, sizes):
    graphs = []

    def captured(step, model, batch):
        step._inputs = tuple(part.clone() for part in batch)
        graphs.append(Replay(step, model))
        return graphs[-1]

    monkeypatch.setattr(graphed._GraphedStep, "_captured", captured)
    model = TinyModel()
    runners = [make_runner({}, model=copy.deepcopy(model), max_epochs=1) for _ in range(2)]
    steps = [graphed._GraphedStep(r, r.task.train_step, GraphedOptimizerHook()) for r in runners]
    steps[0]._is_on_gpu = True
    for size in sizes:
        batch = torch.randn(size, 4), torch.randn(size, 1)
        one, two = (step(r.model, batch) for step, r in zip(steps, runners, strict=True))
        assert torch.equal(one["loss"], two["loss"])
    (graph,) = graphs
    assert (graph.size, graph.num_replays) == (4, sizes.count(4) - 3)


def test_a_step_that_cannot_be_captured_is_told_with_its_reason(make_runner, monkeypatch):
    @contextmanager
    def capture(graph, **options):
        try:
            yield
        finally:
            raise RuntimeError(
                "CUDA error: operation failed due to a previous error during capture"
            )

    def waits(model, batch):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nhint")

    monkeypatch.setattr(torch.cuda, "CUDAGraph", object)
    monkeypatch.setattr(torch.cuda, "graph", capture)
    runner = make_runner({})
    step = graphed._GraphedStep(runner, waits, GraphedOptimizerHook())
    message = (
        r"\(CUDA error: operation not permitted when stream is capturing\): .*hooks/optimizer="
    )
    with pytest.raises(ConfigError, match=message):
        step._captured(runner.model, torch.zeros(1))


def test_a_pass_for_statistics_alone_is_refused():
    hooks = HookList()
    hooks.register(GraphedOptimizerHook(), "optimizer")
    hooks.register(PreciseBnHook(), "precise_bn")
    with pytest.raises(ConfigError, match=r"cannot be in one run with hooks\.precise_bn"):
        hooks.check_contracts()


@pytest.mark.parametrize("value", [0, 1.5, True])
def test_a_warm_up_that_cannot_be(value):
    with pytest.raises(ValueError, match=f"warmup_iters={value}"):
        GraphedOptimizerHook(warmup_iters=value)


class Steps(Hook):
    def __init__(self):
        self.iters = []

    def after_optim_step(self, runner):
        self.iters.append(runner.iter)


def test_the_step_without_its_graph_is_that_of_the_usual_hook(make_runner, monkeypatch):
    """On a CPU the warm-up goes on for ever; schedules, clipping and counting are as usual."""
    monkeypatch.setattr(graphed, "refuse_what_no_graph_holds", lambda runner: None)
    torch.manual_seed(0)
    model = TinyModel()

    def trained(hook):
        steps = Steps()
        hooks = {"optimizer": hook, "param_scheduler": ParamSchedulerHook(), "steps": steps}
        runner = make_runner(
            hooks,
            with_optimizer=False,
            model=copy.deepcopy(model),
            param_schedulers={"warmup": LinearParamScheduler(start_factor=0.5, by_epoch=False)},
            precision="bf16",
            train_size=20,  # The last batch is smaller.
            max_epochs=3,
            val_size=0,
        )
        runner.run("train")
        return runner, steps.iters

    usual, when = trained(OptimizerHook(grad_clip={"max_norm": 0.1}))
    graphed_run, when_graphed = trained(GraphedOptimizerHook(grad_clip={"max_norm": 0.1}))
    assert when == when_graphed and len(when) == graphed_run.state.optim_steps == 9
    for key, value in usual.model.state_dict().items():
        torch.testing.assert_close(graphed_run.model.state_dict()[key], value, msg=key)
    norms = [list(r.message_hub.scalars["train/grad_norm"].values) for r in (usual, graphed_run)]
    torch.testing.assert_close(norms[0], norms[1])
    lr = graphed_run.optimizer.param_groups[0]["lr"]
    assert isinstance(lr, torch.Tensor)
    assert float(lr) == pytest.approx(usual.optim_wrapper.get_lr()["lr"][0])
    graphed_run.forward_train(graphed_run.train_dataloader.dataset.get_batch(torch.arange(4), None))
    assert graphed_run.state.optim_steps == 9, "the step is put back at the end of a run"

"""Frozen parameters do not move by a bit in real runs, whatever would move them."""

from __future__ import annotations

import copy

import pytest
import torch
from fakes import TinyModel
from hydra import compose
from torch import nn

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_runner
from hookexp.compose.conf_dir import with_hydra
from hookexp.errors import ConfigError
from hookexp.hook import Hook, Priority
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.freeze import FreezeHook
from hookexp.hooks.optimizer import OptimizerHook
from hookexp.hooks.sampler_seed import DistSamplerSeedHook


class Trace(Hook):
    """The model's state after each optimizer step."""

    priority = Priority.LOWEST

    def __init__(self):
        self.states = []

    def after_optim_step(self, runner):
        self.states.append(copy.deepcopy(runner.model.state_dict()))


def moved(before, after):
    return {key for key in before if not torch.equal(before[key], after[key])}


def run(make_runner, freeze, **more):
    trace = Trace()
    runner = make_runner({"freeze": freeze, "trace": trace}, **more)
    for group in runner.optimizer.param_groups:
        group["weight_decay"] = 0.1
    start = copy.deepcopy(runner.model.state_dict())
    runner.run("train")
    return runner, [start, *trace.states]


INNER = {"inner.weight", "inner.bias"}
STATISTICS = {"norm.running_mean", "norm.running_var", "norm.num_batches_tracked"}


def test_for_good(make_runner):
    runner, states = run(make_runner, FreezeHook(["inner", "norm"]), max_epochs=2)
    assert moved(states[0], states[-1]) == {"outer.weight", "outer.bias"}
    assert all(p.requires_grad for p in runner.model.parameters())
    assert runner.model.norm.training


def test_until_an_epoch(make_runner):
    _, states = run(make_runner, FreezeHook(["inner", "norm"], until_epoch=2), max_epochs=3)
    assert moved(states[0], states[6]) == {"outer.weight", "outer.bias"}
    assert moved(states[6], states[7]) >= INNER | STATISTICS


def test_until_an_iteration(make_runner):
    _, states = run(make_runner, FreezeHook(["inner"], until_iter=2), max_iters=4)
    assert not INNER & moved(states[0], states[2])
    assert moved(states[2], states[3]) >= INNER


def test_what_momentum_has_gathered_does_not_move_them(make_runner):
    """Trained, then frozen: the optimizer remembers a direction for each of them."""

    class Later(FreezeHook):
        def before_train(self, runner):
            pass

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 3:
                super().before_train(runner)

    _, states = run(make_runner, Later(["inner"]), max_epochs=2)
    assert moved(states[0], states[3]) >= INNER
    assert not INNER & moved(states[3], states[6])


@pytest.mark.parametrize("set_to_none", [True, False])
def test_with_zeroed_gradients_and_accumulation_too(make_runner, set_to_none):
    trace = Trace()
    hooks = {
        "optimizer": OptimizerHook(cumulative_iters=2, set_to_none=set_to_none),
        "freeze": FreezeHook(["*.weight"]),
        "trace": trace,
    }
    runner = make_runner(hooks, with_optimizer=False, max_epochs=2)
    start = copy.deepcopy(runner.model.state_dict())
    runner.run("train")
    changed = moved(start, trace.states[-1])
    assert {"inner.bias", "outer.bias", "norm.bias"} <= changed
    assert not {key for key in changed if key.endswith("weight")}


def test_batch_norm_may_go_on_gathering_statistics(make_runner):
    hook = FreezeHook(["norm", "inner"], batch_norm_eval=False)
    _, states = run(make_runner, hook, max_epochs=1)
    assert moved(states[0], states[-1]) == {"outer.weight", "outer.bias"} | STATISTICS


def test_batch_norm_that_is_half_frozen_goes_on_too(make_runner):
    _, states = run(make_runner, FreezeHook(["norm.weight"]), max_epochs=1)
    assert moved(states[0], states[-1]) >= STATISTICS


def test_a_resume_freezes_again_what_is_still_frozen(make_runner, tmp_path):
    def weights(folder, **more):
        hooks = {"freeze": FreezeHook(["inner"], until_epoch=2), "checkpoint": CheckpointHook()}
        runner = make_runner(hooks, work_dir=tmp_path / folder, **more)
        runner.run("train")
        return runner.model.state_dict()

    whole = weights("whole", max_epochs=4)
    for epochs in (1, 3, 4):
        parts = weights("parts", max_epochs=epochs, resume="auto")
    assert not moved(whole, parts)


def test_a_resume_after_the_thaw_keeps_the_gradients_of_an_open_window(make_runner, tmp_path):
    class Stop(Hook):
        priority = 95

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 4 and not runner.resumed:
                runner.state.stop("test", urgent=True)

    def weights(folder, **more):
        hooks = {
            "optimizer": OptimizerHook(cumulative_iters=2),
            "sampler_seed": DistSamplerSeedHook(),
            "freeze": FreezeHook(["inner"], until_epoch=1),
            "checkpoint": CheckpointHook(),
            **more.pop("hooks", {}),
        }
        runner = make_runner(
            hooks, with_optimizer=False, work_dir=tmp_path / folder, max_epochs=3, **more
        )
        runner.run("train")
        return runner.model.state_dict()

    whole = weights("whole")
    weights("cut", hooks={"stop": Stop()})
    assert not moved(whole, weights("cut", resume="auto"))


def test_gradients_of_another_backward_are_dropped(make_runner):
    """As with DDP, where frozen parameters go on having gradients."""

    class Wrapped(FreezeHook):
        def _set_requires_grad(self, value):
            super()._set_requires_grad(True)

    _, states = run(make_runner, Wrapped(["inner"]), max_epochs=1)
    assert not INNER & moved(states[0], states[-1])


def test_the_run_of_the_config_goes_on_after_the_thaw(tmp_path):
    """With the config's own optimizer, which is fused and has momentum."""
    words = ["hooks=+freeze-checkpoint", "sinks=none", "trainer.device=cpu", "trainer.max_iters=4"]
    words += ["hooks.freeze.params=[features.0]", "hooks.freeze.until_iter=2"]
    words += ["model.width=4", "data.batch_size=16", "trainer.limit_val_batches=1"]
    with with_hydra():
        runner = build_runner(compose("config", overrides=words), tmp_path)
    (group,) = runner.optimizer.param_groups
    assert group["fused"] and group["momentum"] > 0
    trace = Trace()
    runner.register_hook(trace)
    states = [copy.deepcopy(runner.model.state_dict())]
    runner.run("train")
    states += trace.states
    for n, learns in enumerate((False, False, True, True)):
        changed = moved(states[n], states[n + 1])
        assert "features.3.weight" in changed
        assert ("features.0.weight" in changed) == learns


def test_others_are_told_what_is_frozen(make_runner):
    class Ask(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            told.append(runner.message_hub.get_info("frozen_params"))

    told = []
    for until, after in ((2, None), (None, INNER)):
        hooks = {"freeze": FreezeHook(["inner"], until_iter=until), "ask": Ask()}
        runner = make_runner(hooks, max_iters=3)
        runner.run("train")
        assert told == [INNER, INNER, after]
        assert runner.message_hub.get_info("frozen_params") is None
        told.clear()


def test_what_two_of_them_freeze_is_told_together(make_runner):
    class Ask(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            told.append(runner.message_hub.get_info("frozen_params"))

    told = []
    norm = {"norm.weight", "norm.bias"}
    hooks = {
        "first": FreezeHook(["inner"], until_iter=1),
        "second": FreezeHook(["norm"], until_iter=2),
        "ask": Ask(),
    }
    make_runner(hooks, max_iters=3).run("train")
    assert told == [INNER | norm, norm, None]


def test_mistakes(make_runner, caplog):
    with pytest.raises(ConfigError, match=r"hooks\.freeze\.params: 'iner' is no .*: inner, norm"):
        run(make_runner, FreezeHook(["iner"]), max_epochs=1)
    with pytest.raises(ConfigError, match="nothing is left to learn"):
        run(make_runner, FreezeHook(["*"]), max_epochs=1)
    with pytest.raises(ConfigError, match=r"until_epoch=2: this run counts iterations"):
        run(make_runner, FreezeHook(["inner"], until_epoch=2), max_iters=2)
    twice = {"first": FreezeHook(["inner", "norm"], until_epoch=1), "second": FreezeHook(["inner"])}
    with pytest.raises(ConfigError, match=r"inner\.weight is frozen by another hook already; name"):
        make_runner(twice, max_epochs=2).run("train")
    run(make_runner, FreezeHook([]), max_epochs=1)
    assert "nothing is frozen" in caplog.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"params": "inner"}, "params=inner: use a list"),
        ({"params": [], "until_epoch": 0}, "until_epoch=0: use null or"),
        ({"params": [], "until_epoch": 1, "until_iter": 1}, "give one of the two"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FreezeHook(**arguments)


def test_a_model_without_affine_norms_has_none_to_freeze():
    from hookexp.hooks.freeze import _norms_of

    assert _norms_of(nn.Sequential(nn.BatchNorm1d(2, affine=False)), []) == []
    assert len(_norms_of(TinyModel(), list(TinyModel().parameters()))) == 0

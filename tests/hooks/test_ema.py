"""Averages against formulas written out by hand, in real runs with checkpoints."""

from __future__ import annotations

import copy

import pytest
import torch
from fakes import TinyModel, TinyTask

from hookexp.checkpoint.reading import load_checkpoint
from hookexp.errors import ConfigError
from hookexp.hook import Hook, Priority
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.ema import EMAHook
from hookexp.hooks.optimizer import OptimizerHook
from hookexp.optim.wrapper import OptimWrapper

AVERAGED = {"ema_type": "ExponentialMovingAverage"}


class Trace(Hook):
    """The weights after each optimizer step, and those an evaluation sees."""

    priority = Priority.LOWEST

    def __init__(self):
        self.trained = []
        self.evaluated = []

    def after_optim_step(self, runner):
        self.trained.append(copy.deepcopy(runner.model.state_dict()))

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.evaluated.append(copy.deepcopy(runner.model.state_dict()))

    def before_test_iter(self, runner, batch_idx, data_batch=None):
        self.evaluated.append(copy.deepcopy(runner.model.state_dict()))


def shares(kind, steps):
    if kind == "ExponentialMovingAverage":
        return 0.1
    if kind == "MomentumAnnealingEMA":
        return max(0.1, 5 / (5 + steps))
    return 1 / (steps + 1)


@pytest.mark.parametrize(
    "kind", ["ExponentialMovingAverage", "MomentumAnnealingEMA", "StochasticWeightAverage"]
)
def test_an_evaluation_sees_the_average_and_training_does_not(make_runner, kind):
    trace, plain = Trace(), Trace()
    ema = EMAHook(ema_type=kind, momentum=0.1, gamma=5)
    make_runner({"ema": ema, "trace": trace}, max_epochs=2).run("train")
    make_runner({"trace": plain}, max_epochs=2).run("train")
    key = "inner.weight"
    average = trace.trained[0][key]
    for steps, weights in enumerate(trace.trained[1:], start=1):
        average = torch.lerp(average, weights[key], shares(kind, steps))
    assert torch.allclose(trace.evaluated[-1][key], average, atol=1e-6)
    assert not torch.equal(trace.evaluated[-1][key], trace.trained[-1][key])
    for ours, theirs in zip(trace.trained, plain.trained, strict=True):
        assert all(torch.equal(ours[k], theirs[k]) for k in ours)


def test_with_warm_up_the_first_weights_are_soon_forgotten(make_runner):
    trace = Trace()
    ema = EMAHook(momentum=0.7, warm_up=True)
    make_runner({"ema": ema, "trace": trace}, max_epochs=2).run("train")
    average = trace.trained[0]["outer.bias"]
    for steps, weights in enumerate(trace.trained[1:], start=1):
        average = torch.lerp(average, weights["outer.bias"], max(0.7, 9 / (10 + steps)))
    assert torch.allclose(trace.evaluated[-1]["outer.bias"], average, atol=1e-6)


def test_swa_is_the_plain_mean(make_runner):
    trace = Trace()
    ema = EMAHook(ema_type="StochasticWeightAverage")
    make_runner({"ema": ema, "trace": trace}, max_epochs=1).run("train")
    mean = torch.stack([w["outer.bias"] for w in trace.trained]).mean(0)
    assert torch.allclose(trace.evaluated[-1]["outer.bias"], mean, atol=1e-6)


def test_buffers_are_current_unless_they_are_averaged(make_runner):
    current, averaged = Trace(), Trace()
    make_runner({"ema": EMAHook(momentum=0.1), "trace": current}, max_epochs=1).run("train")
    make_runner(
        {"ema": EMAHook(momentum=0.1, update_buffers=True), "trace": averaged}, max_epochs=1
    ).run("train")
    key = "norm.running_mean"
    assert torch.equal(current.evaluated[-1][key], current.trained[-1][key])
    assert not torch.equal(averaged.evaluated[-1][key], averaged.trained[-1][key])


@pytest.mark.parametrize(
    ("arguments", "first"), [({"begin_iter": 3}, 2), ({"begin_epoch": 2}, 3), ({"interval": 2}, 0)]
)
def test_averaging_begins_when_it_is_told_to(make_runner, arguments, first):
    trace = Trace()
    ema = EMAHook(momentum=0.5, **arguments)
    make_runner({"ema": ema, "trace": trace}, max_epochs=2).run("train")
    every = arguments.get("interval", 1)
    average = trace.trained[first]["outer.bias"]
    for steps, weights in enumerate(trace.trained[first + 1 :], start=1):
        if steps % every == 0:
            average = torch.lerp(average, weights["outer.bias"], 0.5)
    assert torch.allclose(trace.evaluated[-1]["outer.bias"], average, atol=1e-6)


def test_a_checkpoint_holds_the_average_and_the_raw_weights(make_runner):
    trace = Trace()
    runner = make_runner(
        {"ema": EMAHook(momentum=0.1), "checkpoint": CheckpointHook(), "trace": trace},
        max_epochs=1,
    )
    runner.run("train")
    checkpoint = load_checkpoint(runner.work_dir / "epoch_1.pth")
    raw, averaged = checkpoint["ema_state_dict"], checkpoint["state_dict"]
    assert all(torch.equal(raw[k], trace.trained[-1][k]) for k in raw)
    assert torch.equal(averaged["inner.weight"], trace.evaluated[-1]["inner.weight"])
    assert not torch.equal(averaged["inner.weight"], raw["inner.weight"])


def test_load_from_takes_the_average_and_a_test_uses_it(make_runner):
    trace, tested = Trace(), Trace()
    runner = make_runner(
        {"ema": EMAHook(momentum=0.1), "checkpoint": CheckpointHook(), "trace": trace},
        max_epochs=1,
    )
    runner.run("train")
    path = str(runner.work_dir / "epoch_1.pth")
    make_runner({"trace": tested}, load_from=path).run("test")
    assert torch.equal(tested.evaluated[0]["inner.weight"], trace.evaluated[-1]["inner.weight"])


def test_train_then_test_in_one_process_tests_the_average(make_runner):
    trace = Trace()
    runner = make_runner({"ema": EMAHook(momentum=0.1), "trace": trace}, max_epochs=1)
    runner.run("train")
    runner.run("test")
    assert torch.equal(trace.evaluated[-1]["inner.weight"], trace.evaluated[-2]["inner.weight"])
    assert torch.equal(runner.model.inner.weight, trace.trained[-1]["inner.weight"])


def test_a_test_that_is_given_up_puts_the_weights_back(make_runner):
    class Stop(Hook):
        def before_test_iter(self, runner, batch_idx, data_batch=None):
            runner.state.stop("SIGTERM", urgent=True)

    trace = Trace()
    hooks = {"ema": EMAHook(momentum=0.1), "trace": trace, "stop": Stop()}
    runner = make_runner(hooks, max_epochs=1, val_size=24)
    runner.run("train")
    assert runner.run("test").status == "stopped"
    assert torch.equal(runner.model.inner.weight, trace.trained[-1]["inner.weight"])


def test_a_resume_restores_average_and_weights_exactly(make_runner, tmp_path):
    def hooks():
        return {"ema": EMAHook(momentum=0.1), "checkpoint": CheckpointHook()}

    whole = make_runner(hooks(), work_dir=tmp_path / "a", max_epochs=3)
    whole.run("train")
    half = make_runner(hooks(), work_dir=tmp_path / "b", max_epochs=1)
    half.run("train")
    rest = make_runner(hooks(), work_dir=tmp_path / "c", max_epochs=3, resume=str(tmp_path / "b"))
    rest.run("train")
    one = load_checkpoint(tmp_path / "a" / "epoch_3.pth")
    two = load_checkpoint(tmp_path / "c" / "epoch_3.pth")
    for part in ("state_dict", "ema_state_dict"):
        assert all(torch.equal(one[part][k], two[part][k]) for k in one[part])
    assert one["hooks"]["ema"] == two["hooks"]["ema"] == AVERAGED | {"steps": 9}


def test_a_resume_with_averages_of_another_kind_is_told(make_runner, tmp_path, caplog):
    make_runner({"ema": EMAHook(), "checkpoint": CheckpointHook()}, max_epochs=1).run("train")
    for kind, told in (("ExponentialMovingAverage", 0), ("StochasticWeightAverage", 1)):
        resume = str(tmp_path / "run" / "epoch_1.pth")
        hooks = {"ema": EMAHook(ema_type=kind), "checkpoint": CheckpointHook()}
        make_runner(hooks, max_epochs=2, resume=resume).run("train")
        assert caplog.text.count("the averages so far were made as ExponentialMoving") == told


def test_a_resume_without_averages_begins_them_or_is_an_error(make_runner, tmp_path):
    plain = make_runner({"checkpoint": CheckpointHook()}, work_dir=tmp_path / "a", max_epochs=1)
    plain.run("train")

    def resume(**arguments):
        trace = Trace()
        ema = EMAHook(momentum=0.1, **arguments)
        runner = make_runner(
            {"ema": ema, "trace": trace, "checkpoint": CheckpointHook()},
            work_dir=tmp_path / "b",
            max_epochs=2,
            resume=str(tmp_path / "a"),
            resume_ignore=("hooks.ema",),
        )
        runner.run("train")
        return trace

    trace = resume()
    average = trace.trained[0]["outer.bias"]
    for weights in trace.trained[1:]:
        average = torch.lerp(average, weights["outer.bias"], 0.1)
    assert torch.allclose(trace.evaluated[-1]["outer.bias"], average, atol=1e-6)
    with pytest.raises(ConfigError, match=r"hooks\.ema\.strict_load=true: .* set it to false"):
        resume(strict_load=True)


def test_a_strict_resume_of_a_run_whose_averages_had_not_begun(make_runner, tmp_path):
    def part(folder, max_epochs, **arguments):
        ema = EMAHook(momentum=0.1, begin_iter=5, strict_load=True)
        hooks = {"averages": ema, "checkpoint": CheckpointHook()}
        runner = make_runner(hooks, work_dir=tmp_path / folder, max_epochs=max_epochs, **arguments)
        runner.run("train")
        return load_checkpoint(tmp_path / folder / f"epoch_{max_epochs}.pth")

    whole = part("whole", 3)
    assert "ema_state_dict" not in part("cut", 1)
    rest = part("cut", 3, resume="auto")
    assert rest["hooks"]["averages"] == whole["hooks"]["averages"] == AVERAGED | {"steps": 5}
    for name, value in whole["state_dict"].items():
        assert torch.equal(rest["state_dict"][name], value)


def in_two(model):
    """An optimizer for each half of a model."""
    halves = {"inner": [*model.inner.parameters(), *model.norm.parameters()]}
    halves["outer"] = [*model.outer.parameters()]
    made = {name: torch.optim.SGD(half, lr=0.1) for name, half in halves.items()}
    return OptimWrapper(made, torch.amp.GradScaler("cpu", enabled=False))


class ByTurns(TinyTask):
    """Steps several optimizers by name in each iteration, as a GAN does."""

    def __init__(self, *names):
        super().__init__()
        self.names = names

    def setup(self, runner):
        self.runner = runner

    def train_step(self, model, batch):
        outputs = super().train_step(model, batch)
        self.runner.optim_wrapper.backward(outputs["loss"])
        for name in self.names:
            self.runner.optimizer_step(name)
        return {"loss": outputs["loss"].detach()}


@pytest.mark.parametrize("names", [("inner", "outer"), ("outer", "inner"), ("inner", "inner")])
def test_of_several_optimizers_the_first_counts_and_all_have_stepped(make_runner, names):
    class Iterations(Trace):
        after_optim_step = Hook.after_optim_step

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            self.trained.append(copy.deepcopy(runner.model.state_dict()))

    trace, ema = Iterations(), EMAHook(ema_type="StochasticWeightAverage", begin_iter=2)
    hooks = {"ema": ema, "trace": trace}
    runner = make_runner(hooks, with_optimizer=False, task=ByTurns(*names), max_epochs=2)
    runner.optim_wrapper = in_two(runner.model)
    runner.run("train")
    averaged = trace.trained[0 if names == ("inner", "inner") else 1 :]
    assert ema.steps == len(averaged)
    for key in ("inner.bias", "outer.bias"):
        mean = torch.stack([weights[key] for weights in averaged]).mean(0)
        assert torch.allclose(trace.evaluated[-1][key], mean, atol=1e-6), key


def test_averages_are_kept_on_the_device_that_is_given(make_runner):
    ema = EMAHook(device="meta", begin_iter=99)
    make_runner({"ema": ema}, max_epochs=1).run("train")
    assert {average.device.type for average in ema._averages.values} == {"meta"}
    seen = []
    for device in (None, "cpu"):
        trace = Trace()
        hooks = {"ema": EMAHook(momentum=0.1, device=device), "trace": trace}
        make_runner(hooks, max_epochs=1).run("train")
        seen.append(trace.evaluated[-1])
    assert all(torch.equal(seen[0][key], seen[1][key]) for key in seen[0])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"begin_epoch": 3}, "hooks.ema.begin_epoch=3: the run ends at 2, so averaging never"),
        ({"begin_iter": 7}, "hooks.ema.begin_iter=7: the run ends at 6, so averaging never"),
        ({"begin_epoch": 2}, ""),
        ({"begin_iter": 5}, ""),
    ],
)
def test_averages_that_never_begin_are_told(make_runner, caplog, arguments, said):
    ema = EMAHook(**arguments)
    make_runner({"ema": ema}, max_epochs=2).run("train")
    assert (ema.steps == 0) == bool(said)
    assert said in caplog.text
    assert said or "never begins" not in caplog.text


@pytest.mark.parametrize("copies", [True, False])
def test_averages_that_no_checkpoint_can_hold_are_told_once(make_runner, caplog, copies):
    class Copied(TinyModel):
        def state_dict(self, **options):
            weights = super().state_dict(**options)
            return {name: t.clone() if copies else t for name, t in weights.items()}

    hooks = {"ema": EMAHook(), "checkpoint": CheckpointHook()}
    make_runner(hooks, model=Copied(), max_epochs=2).run("train")
    said = "the averages of 6 parameters (inner.weight, inner.bias, norm.weight, ...) will be in no"
    assert caplog.text.count(said) == copies


class Scratch(TinyModel):
    """A buffer that no state_dict has, moving or constant."""

    moves = True

    def __init__(self):
        super().__init__()
        self.register_buffer("scratch", torch.ones(1), persistent=False)

    def forward(self, inputs):
        outputs = super().forward(inputs)
        if self.training and self.moves:
            self.scratch.lerp_(outputs.detach().mean(0), 0.5)
        return outputs + self.scratch


class Constant(Scratch):
    moves = False


@pytest.mark.parametrize("model", [Scratch, Constant])
def test_averages_of_buffers_that_are_not_persistent(make_runner, tmp_path, model):
    def run(folder, **more):
        torch.manual_seed(0)
        hooks = {
            "ema": EMAHook(update_buffers=True, momentum=0.1),
            "checkpoint": CheckpointHook(),
        }
        make_runner(hooks, model=model(), work_dir=tmp_path / folder, **more).run("train")

    run("whole", max_epochs=3)
    run("cut", max_epochs=1)
    run("cut", max_epochs=3, resume="auto")
    whole, rest = (load_checkpoint(tmp_path / name / "epoch_3.pth") for name in ("whole", "cut"))
    assert whole["hooks"]["ema"]["steps"] == 9
    assert ("of_other_buffers" in whole["hooks"]["ema"]) == model.moves
    assert repr(whole["hooks"]["ema"]) == repr(rest["hooks"]["ema"])
    assert repr(whole["objective"]) == repr(rest["objective"])


def test_an_error_during_validation_puts_the_weights_back(make_runner):
    class Bomb(Hook):
        def before_val_iter(self, runner, batch_idx, data_batch=None):
            raise RuntimeError("boom")

    trace = Trace()
    runner = make_runner(
        {"ema": EMAHook(momentum=0.1), "trace": trace, "bomb": Bomb()}, max_epochs=1
    )
    with pytest.raises(RuntimeError, match="boom"):
        runner.run("train")
    assert torch.equal(runner.model.inner.weight, trace.trained[-1]["inner.weight"])


def test_tied_weights_are_averaged_once_and_saved_under_both_names(make_runner):
    class Tied(TinyModel):
        def __init__(self):
            super().__init__(width=4)
            self.again = self.inner

    runner = make_runner(
        {"ema": EMAHook(momentum=0.1), "checkpoint": CheckpointHook()}, model=Tied(), max_epochs=1
    )
    runner.run("train")
    saved = load_checkpoint(runner.work_dir / "epoch_1.pth")
    assert torch.equal(saved["state_dict"]["inner.weight"], saved["state_dict"]["again.weight"])
    assert not torch.equal(
        saved["state_dict"]["inner.weight"], saved["ema_state_dict"]["inner.weight"]
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ema_type": "EMA"}, "ema_type=EMA: use one of ExponentialMovingAverage"),
        ({"momentum": 1.5}, "momentum=1.5: use a number between 0 and 1"),
        ({"interval": 0}, "interval=0: use a whole number, 1 or more"),
        ({"interval": 2.5}, "interval=2.5: use a whole number, 1 or more"),
        ({"gamma": True}, "gamma=True: use a whole number, 1 or more"),
        ({"device": "gpu"}, "device=gpu: use null, cpu, cuda or cuda:1"),
        ({"begin_iter": -1}, "begin_iter=-1: use a whole number, 0 or more"),
        ({"begin_iter": 1, "begin_epoch": 1}, "only one may be above 0"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        EMAHook(**arguments)


def test_a_step_to_begin_at_is_one_of_the_optimizer(make_runner, caplog):
    ema, optimizer = EMAHook(begin_iter=5), OptimizerHook(cumulative_iters=4)
    hooks = {"optimizer": optimizer, "ema": ema}
    make_runner(hooks, with_optimizer=False, max_iters=16).run("train")
    assert ema.steps == 0
    assert "hooks.ema.begin_iter=5: the run ends at 4, so averaging never" in caplog.text


def test_a_run_by_iterations_has_no_epoch_to_begin_at(make_runner):
    runner = make_runner({"ema": EMAHook(begin_epoch=2)}, max_iters=6)
    with pytest.raises(ConfigError, match=r"hooks.ema.begin_epoch=2: .* use begin_iter"):
        runner.run("train")

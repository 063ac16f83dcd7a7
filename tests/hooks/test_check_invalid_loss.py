"""A batch that is not finite leaves no trace: real runs against hand-written loops without it."""

from __future__ import annotations

import copy
import logging

import pytest
import torch
from fakes import TinyData, TinyModel, TinyTask
from torch.nn.functional import mse_loss

from hookexp.checkpoint.reading import load_checkpoint
from hookexp.hook import Hook
from hookexp.hooks.check_invalid_loss import CheckInvalidLossHook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.optim.wrapper import OptimWrapper

OPTIMIZERS = {
    "sgd": lambda p: torch.optim.SGD(
        p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.1, fused=True
    ),
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1, fused=True),
    "not fused": lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.1),
}


class Batches:
    """Batches as they were trained on."""

    def __init__(self, num_batches=12, bad=(4,), value=float("nan")):
        data = TinyData(8 * num_batches)
        self.batches = list(zip(data.inputs.split(8), data.targets.split(8), strict=True))
        for index in bad:
            inputs = self.batches[index][0].clone()
            inputs[3, 1] = value
            self.batches[index] = (inputs, self.batches[index][1])
        self.bad = bad

    def __iter__(self):
        return iter(self.batches)


def with_optimizer(runner, make):
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    runner.optim_wrapper = OptimWrapper({"default": make(runner.model.parameters())}, scaler)
    return runner


def with_batches(runner, batches):
    runner.train_loop.dataloader.iterate = lambda start: iter(batches.batches[start:])
    return runner


def trained_by_hand(model, make, batches):
    optimizer = make(model.parameters())
    for inputs, targets in batches:
        mse_loss(model(inputs), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.state_dict(), optimizer.state_dict()["state"]


def all_equal(one, two):
    assert one.keys() == two.keys()
    for key, value in one.items():
        if isinstance(value, dict):
            all_equal(value, two[key])
        elif not key.endswith("num_batches_tracked") if isinstance(key, str) else True:
            assert torch.equal(value, two[key]), key


def run(make_runner, hook, make, batches, **more):
    runner = make_runner(
        {"check_invalid_loss": hook, **more.pop("hooks", {})},
        train_size=8 * len(batches.batches),
        max_epochs=1,
        **more,
    )
    runner = with_batches(with_optimizer(runner, make), batches)
    start = copy.deepcopy(runner.model)
    runner.run("train")
    return runner, start


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize("bad", [(4,), (0,), (0, 5, 11)])
def test_a_bad_batch_leaves_weights_state_and_buffers_as_if_it_had_not_been(make_runner, name, bad):
    batches = Batches(bad=bad)
    make = OPTIMIZERS[name]
    # Freed memory full of NaN, which is what an uninitialised momentum would be made of.
    del [torch.full((n,), torch.nan) for n in (32, 8, 8, 8, 8, 1) for _ in range(20)][:]
    hook = CheckInvalidLossHook(action="skip")
    runner, start = run(make_runner, hook, make, batches)
    good = [b for i, b in enumerate(batches.batches) if i not in bad]
    weights, state = trained_by_hand(start, make, good)
    all_equal(runner.model.state_dict(), weights)
    all_equal(runner.optimizer.state_dict()["state"], state)
    assert hook.num_skipped == len(bad)


def test_the_momentum_of_a_first_step_that_was_held_back_begins_with_zeros(make_runner):
    """Memory that comes uninitialised is filled with NaN, so that using it shows."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    try:
        hook = CheckInvalidLossHook(action="skip")
        runner, _ = run(make_runner, hook, OPTIMIZERS["sgd"], Batches(num_batches=1, bad=(0,)))
    finally:
        torch.use_deterministic_algorithms(False)
    for state in runner.optimizer.state.values():
        assert not state["momentum_buffer"].any()


def test_two_guards_hold_back_the_same_step(make_runner):
    def make(parameters):
        return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True)

    states = []
    for hooks in ({}, {"second": CheckInvalidLossHook(interval=3, action="skip")}):
        first, batches = CheckInvalidLossHook(action="skip"), Batches(bad=(0, 4))
        runner, _ = run(make_runner, first, make, batches, hooks=hooks)
        assert [hook.num_skipped for hook in (first, *hooks.values())] == [2] * (1 + len(hooks))
        states.append(copy.deepcopy(runner.model.state_dict()))
    all_equal(*states)


def test_a_run_without_bad_batches_is_the_same_bit_for_bit(make_runner):
    batches = Batches(bad=())
    runner, start = run(make_runner, CheckInvalidLossHook(), OPTIMIZERS["adamw"], batches)
    weights, state = trained_by_hand(start, OPTIMIZERS["adamw"], batches.batches)
    all_equal(runner.model.state_dict(), weights)
    all_equal(runner.optimizer.state_dict()["state"], state)
    assert not hasattr(runner.optimizer, "found_inf")


def test_only_the_optimizer_that_is_not_fused_is_warned_of(make_runner, caplog):
    for name, warned in (("not fused", True), ("adamw", False)):
        caplog.clear()
        run(make_runner, CheckInvalidLossHook(), OPTIMIZERS[name], Batches(bad=()))
        assert ("AdamW is not fused" in caplog.text) is warned


def test_several_optimizers_are_told_by_their_keys(make_runner, caplog):
    runner = make_runner({"check": CheckInvalidLossHook()}, max_epochs=1, train_size=96)
    with_batches(runner, Batches())
    optimizers = {
        name: torch.optim.AdamW(getattr(runner.model, name).parameters(), fused=name == "inner")
        for name in ("inner", "outer")
    }
    runner.optim_wrapper = OptimWrapper(optimizers, torch.amp.GradScaler("cpu", enabled=False))
    with pytest.raises(FloatingPointError, match=r"lower optimizer\.inner\.lr or opt"):
        runner.run("train")
    assert "set optimizer.outer.fused=true" in caplog.text
    assert "optimizer.inner.fused" not in caplog.text


def test_raise_names_the_iteration_at_the_interval(make_runner):
    class Reached(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            reached.append(runner.iter + 1)

    reached = []
    with pytest.raises(FloatingPointError, match=r"at iteration 5 \(loss\); the weights"):
        run(
            make_runner,
            CheckInvalidLossHook(interval=8),
            OPTIMIZERS["adamw"],
            Batches(),
            hooks={"reached": Reached()},
        )
    assert reached[-1] == 7  # At 8 the error came before the later hook.


def test_raise_comes_at_the_end_of_training_at_the_latest(make_runner):
    with pytest.raises(FloatingPointError, match=r"at iteration 12 \(loss\)"):
        run(make_runner, CheckInvalidLossHook(), OPTIMIZERS["adamw"], Batches(bad=(11,)))


def test_a_long_list_is_cut(make_runner):
    with pytest.raises(FloatingPointError, match=r"10 \(loss\) and 2 more"):
        run(make_runner, CheckInvalidLossHook(), OPTIMIZERS["adamw"], Batches(bad=range(12)))


def test_stop_saves_finite_weights(make_runner):
    hook = CheckInvalidLossHook(interval=2, action="stop")
    runner, _ = run(
        make_runner,
        hook,
        OPTIMIZERS["sgd"],
        Batches(),
        hooks={"checkpoint": CheckpointHook()},
    )
    assert "not finite at iteration 5 (loss)" in runner.state.stop_reason
    assert runner.iter == 6
    saved = load_checkpoint(runner.work_dir / "iter_6.pth")
    assert all(tensor.isfinite().all() for tensor in saved["state_dict"].values())


def test_skip_counts_warns_and_logs(make_runner, caplog):
    hook = CheckInvalidLossHook(interval=6, action="skip")
    with caplog.at_level(logging.WARNING, "hookexp"):
        runner, _ = run(make_runner, hook, OPTIMIZERS["adamw"], Batches(bad=(1, 4, 7)))
    assert "at iteration 2 (loss), 5 (loss); no such step" in caplog.text
    assert "at iteration 8 (loss); no such step" in caplog.text
    assert runner.message_hub.read("train/", 1)["skipped"] == 3


def test_gradients_are_watched_where_the_loss_is_finite(make_runner, caplog):
    class Steep(TinyTask):
        """The root of zero: a loss of 0 with gradients that are not finite."""

        def train_step(self, model, batch):
            loss = super().train_step(model, batch)["loss"]
            return {"loss": (loss * 0).sqrt() if len(losses) == 3 else loss, "n": losses.append(1)}

    losses = []
    make, batches = OPTIMIZERS["sgd"], Batches(bad=())
    hook = CheckInvalidLossHook(action="skip")
    runner, start = run(make_runner, hook, make, batches, task=Steep())
    weights, _ = trained_by_hand(start, make, batches.batches[:3] + batches.batches[4:])
    all_equal(runner.model.state_dict(), weights)
    assert "at iteration 4 (gradients); no such step" in caplog.text


def test_a_bad_loss_with_finite_gradients_is_held_back_too(make_runner):
    class Constant(TinyTask):
        def train_step(self, model, batch):
            outputs = super().train_step(model, batch)
            losses.append(1)
            return {**outputs, "aux_loss": torch.tensor(torch.inf if len(losses) == 5 else 0.0)}

    losses = []
    batches = Batches(bad=())
    make = OPTIMIZERS["adamw"]
    hook = CheckInvalidLossHook(action="skip")
    runner, start = run(make_runner, hook, make, batches, task=Constant())
    good = [b for i, b in enumerate(batches.batches) if i != 4]
    weights, _ = trained_by_hand(start, make, good)
    all_equal(runner.model.state_dict(), weights)


@pytest.mark.parametrize("finite_gradients", [False, True])
def test_a_bad_batch_costs_its_accumulation_window(make_runner, finite_gradients):
    class Constant(TinyTask):
        def train_step(self, model, batch):
            outputs = super().train_step(model, batch)
            losses.append(1)
            return {**outputs, "aux_loss": torch.tensor(torch.nan if len(losses) == 5 else 0.0)}

    losses = []
    batches = Batches(bad=() if finite_gradients else (4,))
    task = Constant() if finite_gradients else TinyTask()
    make = OPTIMIZERS["adamw"]
    runner = make_runner(
        {"check_invalid_loss": CheckInvalidLossHook(action="skip")},
        train_size=96,
        max_epochs=1,
        task=task,
    )
    runner.hooks["optimizer"].cumulative_iters = 3
    runner = with_batches(with_optimizer(runner, make), batches)
    start = copy.deepcopy(runner.model)
    runner.run("train")
    optimizer = make(start.parameters())
    for first in (0, 6, 9):
        for inputs, targets in batches.batches[first : first + 3]:
            (mse_loss(start(inputs), targets) / 3).backward()
        optimizer.step()
        optimizer.zero_grad()
    for name, weight in start.named_parameters():
        assert torch.equal(runner.model.get_parameter(name), weight)
    assert runner.hooks["check_invalid_loss"].num_skipped == 1


def test_with_fp16_an_overflow_is_the_scaler_s_and_a_bad_loss_is_reported(make_runner, caplog):
    scripted = {2: torch.inf}

    class Overflows(TinyTask):
        def train_step(self, model, batch):
            loss = super().train_step(model, batch)["loss"].float()
            losses.append(1)
            if len(losses) == 4:
                loss = loss + 1e35 * sum(p.sum() for p in model.parameters())
            return {"loss": loss * scripted.get(len(losses), 1.0)}

    losses = []
    hook = CheckInvalidLossHook(action="skip")
    runner = make_runner(
        {"check_invalid_loss": hook}, max_epochs=2, task=Overflows(), precision="fp16"
    )
    runner.run("train")
    assert "at iteration 2 (loss); no such step" in caplog.text
    assert hook.num_skipped == 1
    assert all(t.isfinite().all() for t in runner.model.state_dict().values())


def test_a_task_that_steps_by_itself_is_guarded(make_runner):
    class Steps(TinyTask):
        def setup(self, runner):
            self.runner = runner

        def train_step(self, model, batch):
            loss = super().train_step(model, batch)["loss"]
            loss.backward()
            self.runner.optimizer_step()
            return {"loss": loss.detach()}

    batches = Batches(bad=(0, 4))
    hook = CheckInvalidLossHook(action="skip")
    make = OPTIMIZERS["adamw"]
    runner, start = run(make_runner, hook, make, batches, task=Steps(), with_optimizer=False)
    good = [b for i, b in enumerate(batches.batches) if i not in (0, 4)]
    weights, _ = trained_by_hand(start, make, good)
    all_equal(runner.model.state_dict(), weights)
    assert hook.num_skipped == 2


def test_what_is_not_reported_yet_survives_a_resume(make_runner, tmp_path):
    class Ask(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 5:
                runner.save_checkpoint("mid.pth")

    batches = Batches(bad=(1, 5))
    make = OPTIMIZERS["adamw"]
    first = CheckInvalidLossHook(interval=10, action="skip")
    run(make_runner, first, make, batches, work_dir=tmp_path / "a", hooks={"ask": Ask()})
    again = CheckInvalidLossHook(interval=10, action="raise")
    with pytest.raises(FloatingPointError, match=r"at iteration 2 \(loss\), 6 \(loss\);"):
        run(make_runner, again, make, batches, resume=str(tmp_path / "a" / "mid.pth"))
    assert again.num_skipped == 2


def test_a_count_whose_name_contains_loss_is_not_watched(make_runner):
    class Counts(TinyTask):
        def train_step(self, model, batch):
            return {**super().train_step(model, batch), "num_losses": torch.tensor(3)}

    hook = CheckInvalidLossHook(action="skip")
    run(make_runner, hook, OPTIMIZERS["sgd"], Batches(bad=(4,)), task=Counts())
    assert hook.num_skipped == 1


def test_a_resume_within_a_window_remembers_its_bad_loss(make_runner, tmp_path):
    class Fifth(TinyTask):
        def train_step(self, model, batch):
            bad = torch.equal(batch[0], batches.batches[4][0])
            return {
                **super().train_step(model, batch),
                "aux_loss": torch.tensor(torch.nan if bad else 0.0),
            }

    class Ask(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 4:
                runner.save_checkpoint("mid.pth")

    batches = Batches(bad=())

    def trained(**more):
        hook = CheckInvalidLossHook(action="skip")
        hooks = {"check_invalid_loss": hook, "ask": Ask()}
        runner = make_runner(hooks, train_size=96, max_epochs=1, task=Fifth(), **more)
        runner.hooks["optimizer"].cumulative_iters = 3
        runner = with_batches(with_optimizer(runner, OPTIMIZERS["adamw"]), batches)
        runner.run("train")
        return runner

    whole = trained(work_dir=tmp_path / "a")
    rest = trained(work_dir=tmp_path / "b", resume=str(tmp_path / "a" / "mid.pth"))
    all_equal(whole.model.state_dict(), rest.model.state_dict())
    all_equal(whole.optimizer.state_dict()["state"], rest.optimizer.state_dict()["state"])
    assert rest.hooks["check_invalid_loss"].num_skipped == 1


def test_a_model_without_buffers_and_with_parameters_that_are_empty_or_unused(make_runner):
    class Frozen(TinyModel):
        def __init__(self):
            super().__init__()
            self.norm = torch.nn.Identity()
            self.empty = torch.nn.Parameter(torch.zeros(0))
            self.unused = torch.nn.Parameter(torch.zeros(3))

        def forward(self, inputs):
            return super().forward(inputs) + self.empty.sum()

    hook = CheckInvalidLossHook()
    run(make_runner, hook, OPTIMIZERS["sgd"], Batches(bad=()), model=Frozen())
    assert hook.num_skipped == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "interval=0: use a whole number of iterations"),
        ({"interval": 2.5}, "interval=2.5: use a whole number"),
        ({"action": "warn"}, "action=warn: use one of raise, stop, skip"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CheckInvalidLossHook(**arguments)

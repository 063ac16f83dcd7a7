"""`mode=verify_resume` passes a sound run, and names what is wrong with one that is not."""

from __future__ import annotations

import os
import signal

import pytest
import torch
from hydra import compose

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.compose.conf_dir import with_hydra
from hookexp.compose.isolation import forget_compiled_code, restored_process_state
from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.verify import verify_resume


class Forgetful(Hook):
    """Its noise depends on how often it was called, which it does not save."""

    def __init__(self):
        self.count = 0

    def after_optim_step(self, runner):
        self.count += 1
        if self.count > 4:
            with torch.no_grad():
                next(runner.model.parameters()).mul_(1.01)


class Remembering(Forgetful):
    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Undetermined(Hook):
    made = 0

    def __init__(self):
        Undetermined.made += 1

    def after_optim_step(self, runner):
        with torch.no_grad():
            next(runner.model.parameters()).mul_(1 + 0.01 * Undetermined.made)


TAKEN = [f"~model.{key}" for key in ("num_classes", "in_channels", "width", "dropout")]
"""Keys of the model of the default run, which another one does not have."""


def verify(tmp_path, *overrides):
    with with_hydra():
        cfg = compose(
            "config",
            overrides=["trainer.device=cpu", "trainer.verify_iters=4", *overrides],
        )
    verify_resume(cfg, tmp_path)


def test_a_sound_run_is_verified(tmp_path, caplog):
    with caplog.at_level("INFO"):
        verify(tmp_path, "+hooks/ema=default", "hooks/optimizer=accumulate", "data.num_workers=0")
    assert "bit for bit" in caplog.text


def test_a_run_whose_parts_begin_to_learn_is_verified(tmp_path, caplog):
    words = ["+hooks/freeze=default", "hooks.freeze.params=[features]", "hooks.freeze.until_iter=3"]
    with caplog.at_level("INFO"):
        verify(tmp_path, *words, "data.num_workers=0")
    assert "bit for bit" in caplog.text


def test_what_hooks_measure_of_the_machine_is_not_compared(tmp_path, caplog):
    words = ["+hooks/memory=default", "+hooks/throughput=default", "hooks.logger.interval=1"]
    with caplog.at_level("INFO"):
        verify(tmp_path, *words)
    assert "bit for bit" in caplog.text


class Lookup(torch.nn.Module):
    """Grey values as words, whose gradients are sparse."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(20, 10, sparse=True)

    def forward(self, images):
        return self.table((images.flatten(1) * 19).long().clamp(0, 19)).mean(1)


@pytest.mark.parametrize("async_save", ["true", "false"])
def test_a_run_with_sparse_gradients_in_an_open_window_is_verified(tmp_path, caplog, async_save):
    plain = ["fused=false", "momentum=0", "nesterov=false", "weight_decay=0"]
    words = ["hooks/optimizer=accumulate", "model._target_=test_verify.Lookup", *TAKEN]
    words += [*(f"optimizer.{word}" for word in plain), f"hooks.checkpoint.async_save={async_save}"]
    with caplog.at_level("INFO"):
        verify(tmp_path, *words, "trainer.verify_iters=7", "data.val=null")
    assert "bit for bit" in caplog.text


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_compiled_run_that_has_met_a_smaller_batch_is_verified(tmp_path, caplog):
    words = ["trainer.compile=true", "trainer.deterministic=true", "trainer.verify_iters=20"]
    with restored_process_state(), caplog.at_level("INFO"):
        verify(tmp_path, *words, "data.val=null")
    assert "bit for bit" in caplog.text


def test_what_is_compiled_may_be_the_cause(tmp_path, monkeypatch):
    compiled = torch._dynamo.utils.counters["stats"]

    def count():
        graphs.append(compiled["unique_graphs"])
        forget_compiled_code()

    graphs = []
    monkeypatch.setattr("hookexp.verify.forget_compiled_code", count)
    hook = "+hooks.forgetful._target_=test_verify.Forgetful"
    with pytest.raises(ConfigError, match=r"or trainer\.compile, which trainer\.deterministic"):
        verify(tmp_path, "+trainer.compile.backend=eager", hook)
    before_whole, before_resumed, before_again = graphs
    assert before_whole < before_resumed < before_again  # Each run compiles its own.


def test_a_run_that_is_too_short_says_what_to_set(tmp_path):
    with pytest.raises(ConfigError, match=r"resumes after 4 .* this run has 1; make it longer$"):
        verify(tmp_path, "trainer.max_iters=1")
    with pytest.raises(ConfigError, match=r"resumes after 4 .* this run has 4; .*verify_iters=2$"):
        verify(tmp_path, "trainer.max_iters=4")


def test_how_much_was_compared_is_said(tmp_path, caplog):
    with caplog.at_level("INFO"):
        verify(tmp_path, "trainer.max_iters=6")
    assert "a run resumed after 4 of 6 iterations" in caplog.text


class Signal(Hook):
    def __init__(self, at):
        self.at = tuple(at)

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if (runner.resumed, runner.iter + 1) == self.at:
            os.kill(os.getpid(), signal.SIGTERM)


@pytest.mark.parametrize("at", ["[false, 2]", "[false, 6]", "[true, 6]"])
def test_a_signal_ends_it_without_a_verdict(tmp_path, at, caplog):
    target = "+hooks.signal._target_=test_verify.Signal"
    with pytest.raises(SystemExit) as left:
        verify(tmp_path, target, f"+hooks.signal.at={at}")
    assert left.value.code == 143
    assert "verified" not in caplog.text


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_a_run_in_another_memory_layout_is_verified(tmp_path, caplog, optimizer):
    words = ["+hooks/ema=default", "hooks/optimizer=accumulate", f"optimizer={optimizer}"]
    with caplog.at_level("INFO"):
        verify(tmp_path, *words, "trainer.channels_last=true", "trainer.verify_iters=7")
    assert "bit for bit" in caplog.text


def test_a_hook_that_saves_its_state_is_verified(tmp_path, caplog):
    with caplog.at_level("INFO"):
        verify(tmp_path, f"+hooks.mine._target_={__name__}.Remembering")
    assert "bit for bit" in caplog.text


def test_a_hook_that_forgets_is_found(tmp_path):
    said = r"not verified: after a resume state_dict\.\S+: differs.*keeps: mine has no state_dict$"
    with pytest.raises(ConfigError, match=said):
        verify(tmp_path, f"+hooks.mine._target_={__name__}.Forgetful")


def test_a_run_that_never_is_the_same_is_told_apart(tmp_path):
    said = "two runs from the same start differ already .* a global variable"
    with pytest.raises(ConfigError, match=said):
        verify(tmp_path, f"+hooks.mine._target_={__name__}.Undetermined")


def test_a_verification_that_failed_in_the_same_folder_does_not_count(tmp_path, caplog):
    with pytest.raises(ConfigError, match="not verified"):
        verify(tmp_path, f"+hooks.mine._target_={__name__}.Forgetful", "hooks.logger.interval=1")
    with caplog.at_level("INFO"):
        verify(tmp_path, f"+hooks.mine._target_={__name__}.Remembering", "hooks.logger.interval=1")
    assert "bit for bit" in caplog.text


class Counting(Hook):
    """What it logs depends on how often it was called, which it does not save."""

    def __init__(self):
        self.count = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.count += 1
        runner.message_hub.update_scalar("train/count", torch.tensor(float(self.count)))


def test_a_cause_is_known_where_a_row_of_the_log_differs(tmp_path):
    said = r"after a resume log\[0\]\.count: .*Likely: what is logged depends on something"
    with pytest.raises(ConfigError, match=said):
        verify(tmp_path, f"+hooks.mine._target_={__name__}.Counting", "hooks.logger.interval=1")

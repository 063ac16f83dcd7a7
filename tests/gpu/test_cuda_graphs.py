"""A step replayed from a CUDA graph gives the result of the same step launched one by one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hydra import compose

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_runner
from hookexp.compose.conf_dir import with_hydra
from hookexp.compose.isolation import restored_process_state
from hookexp.tasks.supervised import SupervisedTask

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


compiling = pytest.mark.filterwarnings("default")  # What torch's compiler warns of is its own.


def trained(folder: Path, *overrides: str):
    """Deterministic, since runs are compared: their differences would grow from step to step."""
    folder.mkdir(parents=True)
    common = ["trainer.device=cuda", "trainer.max_iters=50", "sinks=none", "data.val=null"]
    common += ["trainer.deterministic=true", "hooks.checkpoint.interval=-1"]
    with with_hydra():
        cfg = compose("config", overrides=[*common, *overrides])
    with restored_process_state():
        runner = build_runner(cfg, folder)
        runner.run("train")
    return runner


@pytest.mark.parametrize(
    "overrides",
    [
        ["model.dropout=0.2"],
        ["optimizer=adamw", "hooks.optimizer.grad_clip.max_norm=0.5"],
        ["optimizer=adamw", "optimizer.fused=null"],
        ["trainer.precision=bf16", "trainer.channels_last=true"],
        ["data.device_resident=true"],
        pytest.param(["trainer.compile=true"], marks=compiling),
    ],
    ids=" ".join,
)
def test_the_graph_gives_the_same_run(tmp_path, overrides):
    """Over two epochs, with dropout, a schedule, and a last batch of another size in each."""
    usual = trained(tmp_path / "usual", *overrides)
    graphed = trained(tmp_path / "graphed", "hooks/optimizer=graphed", *overrides)
    assert graphed.state.optim_steps == usual.state.optim_steps == 50
    for name in usual.message_hub.scalars:
        if name.startswith("train/") and "time" not in name and "memory" not in name:
            one = torch.tensor([float(v) for v in usual.message_hub.scalars[name].values])
            two = torch.tensor([float(v) for v in graphed.message_hub.scalars[name].values])
            torch.testing.assert_close(one, two, rtol=0.05, atol=0.02, msg=name)
    losses = [float(v) for v in graphed.message_hub.scalars["train/loss"].values]
    assert len(set(losses)) > 40, "each value is a copy of its own"


def test_a_resumed_run_goes_on_with_the_schedule(tmp_path):
    words = ["hooks/optimizer=graphed", "optimizer=adamw", "hooks.checkpoint.interval=20"]
    words += ["hooks.checkpoint.by_epoch=false"]
    whole = trained(tmp_path / "whole", *words)
    resume = f"resume={tmp_path / 'whole' / 'iter_20.pth'}"
    rest = trained(tmp_path / "rest", *words, resume)
    assert rest.resumed and rest.iter == 50
    torch.testing.assert_close(
        torch.tensor(rest.optim_wrapper.get_lr()["lr"]),
        torch.tensor(whole.optim_wrapper.get_lr()["lr"]),
    )
    for one, two in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        torch.testing.assert_close(one, two, rtol=0.05, atol=0.02)


def test_replaying_makes_the_host_wait_for_nothing(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    with with_hydra():
        overrides = ["trainer.device=cuda", "trainer.max_iters=12", "sinks=none", "data.val=null"]
        overrides += ["hooks=none", "+hooks/optimizer=graphed", "data.drop_last=true"]
        runner = build_runner(compose("config", overrides=overrides), folder)

    def watch(step):
        seen = []

        def call(model, batch):
            seen.append(1)
            torch.cuda.set_sync_debug_mode("error" if len(seen) > 5 else "default")
            return step(model, batch)

        return call

    try:
        runner.hooks.register(_WrapAgain(watch), "watch")
        runner.run("train")
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert runner.iter == 12


@compiling
def test_what_torchs_own_graphs_return_can_be_read_later(tmp_path):
    """They write to the same memory each time, and the logger reads ten losses at once."""
    runner = trained(tmp_path / "run", "trainer.compile=reduce-overhead", "hooks=+ema")
    losses = [float(v) for v in runner.message_hub.scalars["train/loss"].values]
    assert len(losses) == 50 and len(set(losses)) > 40


class Waiting(SupervisedTask):
    def train_step(self, model, batch):
        outputs = super().train_step(model, batch)
        assert outputs["loss"].item() >= 0
        return outputs


def test_a_step_that_makes_the_host_wait_is_told(tmp_path):
    """In a process of its own, as a capture that was broken off may leave torch in any state."""
    words = ["hooks/optimizer=graphed", f"task._target_={__name__}.Waiting", "trainer.device=cuda"]
    here = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, "-m", "hookexp", *words, f"hydra.run.dir={tmp_path}"],
        env={
            **os.environ,
            "PYTHONPATH": os.pathsep.join(
                [str(here.parent.parent), str(here), os.environ.get("PYTHONPATH", "")]
            ),
        },
        capture_output=True,
        text=True,
    )
    assert run.returncode == 1
    assert "cannot be captured (" in run.stderr and "hooks/optimizer=default" in run.stderr


class _WrapAgain:
    """Goes around the graphed step, whose hook is called before this one."""

    def __init__(self, watch):
        self._watch = watch

    def before_train(self, runner):
        runner.wrap_train_step(self._watch)

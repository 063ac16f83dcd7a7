"""What the hub knows about a run."""

from __future__ import annotations

import platform
import subprocess

import pytest
import torch
from fakes import TinyModel, TinyTask
from torch.optim import SGD

from hookexp.hooks.runtime_info import RuntimeInfoHook, _git_commit
from hookexp.optim.wrapper import OptimWrapper


def test_infos_and_scalars_of_a_run(make_runner):
    runner = make_runner({"runtime_info": RuntimeInfoHook()}, max_epochs=2, seed=5)
    runner.run("train")
    hub = runner.message_hub
    assert hub.get_info("seed") == 5
    assert hub.get_info("experiment_name") == "tiny"
    assert hub.get_info("torch_version") == str(torch.__version__)
    assert (hub.get_info("max_epochs"), hub.get_info("max_iters")) == (2, 6)
    assert (hub.get_info("epoch"), hub.get_info("iter")) == (1, 5)
    assert len(hub.get_scalar("train/loss").values) == 6
    assert len(hub.get_scalar("val/accuracy").values) == 2
    assert hub.get_info("python_version") == platform.python_version()
    assert hub.get_info("device") == "cpu"
    assert hub.get_info("cfg") == runner.cfg


def test_the_lr_of_every_parameter_group(make_runner):
    model = TinyModel()
    runner = make_runner({"runtime_info": RuntimeInfoHook()}, model=model, max_epochs=1)
    extra = torch.nn.Parameter(torch.zeros(1))
    runner.optimizer.add_param_group({"params": [extra], "lr": torch.tensor(0.5)})
    runner.run("train")
    assert list(runner.message_hub.get_scalar("train/lr").values) == [0.1] * 3
    second = runner.message_hub.get_scalar("train/lr/1").values
    assert [float(v) for v in second] == [0.5] * 3
    assert second[0] is not runner.optimizer.param_groups[1]["lr"]


def test_the_lr_of_optimizers_has_their_names(make_runner):
    model = TinyModel()
    weights = [torch.nn.Parameter(torch.zeros(1)) for _ in range(3)]
    groups = [{"params": weights[1]}, {"params": weights[2], "lr": 0.3}]
    optimizers = {"g": SGD([weights[0]], lr=0.1), "d": SGD(groups, lr=0.2)}
    wrapper = OptimWrapper(optimizers, torch.amp.GradScaler(enabled=False))
    runner = make_runner({"runtime_info": RuntimeInfoHook()}, model=model)
    runner.optim_wrapper = wrapper
    RuntimeInfoHook().before_train_iter(runner, 0)
    hub = runner.message_hub
    found = {key: hub.get_scalar(key).current() for key in hub.scalars if "/lr" in key}
    assert found == {"train/lr/g": 0.1, "train/lr/d": 0.2, "train/lr/d/1": 0.3}


def test_metrics_that_are_no_scalars_become_infos(make_runner):
    runner = make_runner()
    RuntimeInfoHook().after_val_epoch(runner, metrics={"confusion": [[1, 0], [0, 1]], "acc": 0.5})
    assert runner.message_hub.get_info("val/confusion") == [[1, 0], [0, 1]]
    assert runner.message_hub.get_scalar("val/acc").current() == 0.5


def test_metrics_of_a_test_have_names_of_their_own(make_runner):
    runner = make_runner({"runtime_info": RuntimeInfoHook()})
    runner.run("test")
    assert 0 < runner.message_hub.get_scalar("test/accuracy").current() < 1
    assert not any(key.startswith("val/") for key in runner.message_hub.scalars)


def test_the_commit_of_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert _git_commit() is None
    subprocess.run(["git", "init", "-q"], check=True)
    words = [
        "-c",
        "user.name=a",
        "-c",
        "user.email=a@b",
        "commit",
        "-q",
        "--allow-empty",
        "-m",
        "x",
    ]
    subprocess.run(["git", *words], check=True)
    commit = _git_commit()
    assert commit is not None and len(commit) == 40
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _git_commit() is None


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (torch.zeros(3), r"'extra' of shape \(3,\)"),
        ("high", "'extra' of type str"),
        ([0.5], "'extra' of type list"),
    ],
)
def test_an_output_that_is_no_scalar_is_named(make_runner, value, message):
    class Task(TinyTask):
        def train_step(self, model, batch):
            return {**super().train_step(model, batch), "extra": value}

    runner = make_runner({"runtime_info": RuntimeInfoHook()}, task=Task(), max_epochs=1)
    with pytest.raises(ValueError, match=message):
        runner.run("train")

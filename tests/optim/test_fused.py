"""The fused kernels that the optimizer configs choose give the result of the plain ones."""

from __future__ import annotations

import pytest
import torch
from hydra import compose

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_runner
from hookexp.compose.conf_dir import with_hydra


def trained(folder, *overrides):
    folder.mkdir()
    common = ["trainer.device=cpu", "trainer.max_iters=6", "sinks=none", "data.val=null"]
    small = ["model.width=4", "data.batch_size=8", "hooks=-checkpoint", *overrides]
    with with_hydra():
        runner = build_runner(compose("config", overrides=[*common, *small]), folder)
    runner.run("train")
    return runner


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_fused_is_the_default_and_gives_the_same_result(tmp_path, optimizer):
    fused = trained(tmp_path / "fused", f"optimizer={optimizer}")
    plain = trained(tmp_path / "plain", f"optimizer={optimizer}", "optimizer.fused=false")
    assert fused.optimizer.param_groups[0]["fused"] is True
    assert plain.optimizer.param_groups[0]["fused"] is False
    for key, value in fused.model.state_dict().items():
        torch.testing.assert_close(value, plain.model.state_dict()[key], msg=key)

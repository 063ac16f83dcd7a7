"""A deterministic run on a GPU that was killed and continued is the run that was not."""

from __future__ import annotations

import signal

import pytest
import torch
from killing import differences, finish, kill_at, launch

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

DIGITS = [
    "trainer.max_epochs=2",
    "hooks=+ema+grad_norm+check_invalid_loss",
    "hooks/optimizer=accumulate",
    "hooks.optimizer.cumulative_iters=3",
]
CHARLM = [
    "experiment=charlm",
    "data.train.max_chars=60000",
    "data.val.max_chars=60000",
    "data.test.max_chars=60000",
    "trainer.max_iters=30",
    "trainer.val_interval=10",
]
GRAPHED = ["trainer.max_iters=40", "hooks/optimizer=graphed", "optimizer=adamw", "hooks=+ema"]
RESIDENT = [
    "trainer.max_iters=40",
    "trainer.channels_last=true",
    "data.device_resident=true",
    "+data.transform._target_=hookexp.data.augment.random_shift",
    "+data.transform._partial_=true",
    "hooks=+precise_bn",
]


@pytest.mark.parametrize(
    ("words", "precision"),
    [
        (DIGITS, "fp32"),
        (DIGITS, "bf16"),
        (DIGITS, "fp16"),
        (CHARLM, "fp32"),
        (CHARLM, "bf16"),
        (GRAPHED, "bf16"),
        (RESIDENT, "fp32"),
    ],
    ids=["digits-32", "digits-b16", "digits-16", "charlm-32", "charlm-b16", "graphed", "resident"],
)
def test_two_kills(tmp_path, words, precision):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    common = [*words, f"trainer.precision={precision}", "trainer.device=cuda"]
    common += ["trainer.deterministic=true", "sinks=-console", "hooks.logger.interval=4"]
    common += ["hooks.checkpoint.by_epoch=false", "hooks.checkpoint.interval=4"]
    assert finish(launch(f"hydra.run.dir={whole}", *common)) == 0
    command = [f"hydra.run.dir={cut}", "resume=auto", *common]
    for kill in (kill_at(6), kill_at(17)):
        assert finish(launch(*command, *kill)) == -signal.SIGKILL
    assert finish(launch(*command)) == 0
    assert differences(whole, cut) == []

"""Between two log points the host waits for no GPU: torch raises an error where it does."""

from __future__ import annotations

import pytest
import torch
from hydra import compose
from waiting import Forbidden

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_runner
from hookexp.compose.conf_dir import with_hydra
from hookexp.compose.isolation import restored_process_state

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

CHARLM = ["experiment=charlm", "hooks.logger.interval=10"]
CHARLM += [f"data.{split}.max_chars=60000" for split in ("train", "val", "test")]
SHIFTED = ["+data.transform._target_=hookexp.data.augment.random_shift"]
SHIFTED += ["+data.transform._partial_=true"]


@pytest.mark.parametrize(
    "words",
    [
        ["hooks=+ema+grad_norm+throughput+check_invalid_loss+memory"],
        ["trainer.precision=bf16", "trainer.channels_last=true", "hooks=+ema/swa"],
        ["trainer.deterministic=true", "hooks=+grad_norm/layers", "hooks.grad_norm.interval=1"],
        ["data.device_resident=true", *SHIFTED],
        ["optimizer=adamw", "hooks.optimizer.grad_clip.max_norm=1.0"],
        ["hooks/optimizer=accumulate", "hooks.optimizer.cumulative_iters=3"],
        ["hooks/optimizer=sam"],
        ["hooks/optimizer=graphed", "optimizer=adamw", "hooks=+ema+throughput"],
        ["trainer.activation_checkpointing=[features]"],
        [*CHARLM, "trainer.precision=bf16", "hooks=+ema+check_invalid_loss"],
    ],
    ids=" ".join,
)
def test_between_two_log_points(tmp_path, words):
    common = ["trainer.device=cuda", "trainer.max_iters=65", "hooks.checkpoint.interval=-1"]
    with with_hydra():
        cfg = compose("config", overrides=[*common, *words, "data.val=null", "sinks=-console"])
    with restored_process_state():
        runner = build_runner(cfg, tmp_path)
        runner.hooks.register(Forbidden(interval=10), "forbidden")
        runner.run("train")
    assert runner.iter == 65

"""Two processes under torchrun are one run: one folder, one log, every rank in the checkpoint."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from hookexp.checkpoint.store import load_checkpoint

ROOT = Path(__file__).parent.parent


def torchrun(folder, *words):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["-m", "hookexp", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180
    )


def test_two_ranks_train_together_and_resume(tmp_path):
    words = ["trainer.device=cpu", "sinks=-tensorboard", "hooks.logger.interval=5", "name=two"]
    done = torchrun(tmp_path, *words, "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Epoch(val) [1]") == 1
    (day,) = (tmp_path / "outputs" / "two").iterdir()
    (folder,) = day.iterdir()
    checkpoint = load_checkpoint(folder / "epoch_1.pth")
    assert checkpoint["meta"]["world_size"] == 2
    assert len(checkpoint["rng"]) == 2
    rows = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 10]

    more = ["trainer.max_epochs=2", f"hydra.run.dir={folder}", "resume=auto"]
    done = torchrun(tmp_path, *words, *more)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_checkpoint(folder / "epoch_2.pth")["loop"]["iter"] == 20

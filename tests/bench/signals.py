"""Sends the real command SIGTERM, SIGUSR1, SIGINT or SIGHUP at any moment; looks how it leaves.

    python tests/bench/signals.py --signals 60

Runs with a checkpoint at every iteration and two workers of the loader, which are sent the signal
too in half of the cases, and sweeps of three short ones: a signal meets imports, the building of a
run, training, saving, the time between two runs, and the end. Each has to leave with the signal's
code and without a traceback. A process that has not yet read its first line of ours, or has left
its last one, ends by the signal itself; that is counted apart.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

ROOT = Path(__file__).resolve().parent.parent.parent
COMMON = [
    "hooks.checkpoint.by_epoch=false",
    "hooks.checkpoint.interval=1",
    "trainer.device=cpu",
    "trainer.limit_train_batches=5",
    "trainer.limit_val_batches=1",
]
CODES = {signal.SIGTERM: 143, signal.SIGUSR1: 143, signal.SIGINT: 130, signal.SIGHUP: 129}
WITH_WORKERS = [
    "data.train._target_=signals.OneByOne",
    "data.val._target_=signals.OneByOne",
    "data.num_workers=2",
]
LATEST = {"run": 6.0, "sweep": 9.0}
"""Seconds after the start at which a signal comes at the latest."""


class OneByOne(Dataset[Any]):
    """The digits through workers, which data in memory has no need of."""

    def __init__(self, split: str) -> None:
        from hookexp.data.digits import Digits

        self.digits = Digits(split)

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> Any:
        return self.digits[index]


def words_of(kind: str, folder: Path) -> list[str]:
    if kind == "run":
        return [f"hydra.run.dir={folder}/run", "trainer.max_epochs=400", *COMMON, *WITH_WORKERS]
    lr = "optimizer.lr=0.1,0.01,0.001"
    return ["-m", f"hydra.sweep.dir={folder}/sweep", lr, "trainer.max_epochs=1", *COMMON]


def outcome(rng: random.Random, folder: Path) -> tuple[str, str]:
    """What a signal to one process came to, and what the process had printed."""
    kind = rng.choice(["run", "run", "sweep"])
    number = rng.choice(list(CODES))
    process = subprocess.Popen(
        [sys.executable, "-m", "hookexp", *words_of(kind, folder)],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/tests/bench"},
        start_new_session=True,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    time.sleep(rng.uniform(0.02, LATEST[kind]))
    if process.poll() is None:
        rng.choice([os.kill, os.killpg])(process.pid, number)
    printed, _ = process.communicate(timeout=120)
    code = process.returncode
    if "Traceback" in printed:
        return f"{kind}: a traceback, code {code}", printed
    if code in (CODES[number], 0):
        return f"{kind}: {'ended before' if code == 0 else 'left as it should'}", printed
    if code == -number:
        return f"{kind}: ended by the signal itself", printed
    return f"{kind}: code {code} for {number.name}", printed


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--signals", type=int, default=60)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    rng = random.Random(arguments.seed)
    counts: Counter[str] = Counter()
    for _ in range(arguments.signals):
        with tempfile.TemporaryDirectory(prefix="hookexp_signals_") as folder:
            what, printed = outcome(rng, Path(folder))
        counts[what] += 1
        if "left as" not in what and "ended" not in what:
            print(f"{what}\n{printed[-2000:]}\n", flush=True)
    for what, count in sorted(counts.items()):
        print(f"{count:5d}  {what}")


if __name__ == "__main__":
    main()

"""How long training stands still for a checkpoint, and how fast one gets onto the disk.

    python tests/bench/save.py

A model of 30 million parameters with AdamW: 360 MB. The stall is what the loop waits at its safe
point; it is compared with the copy of the same tensors into host memory that is kept and used
again, and with one into fresh memory. The whole save, checksum and fsync included, is compared
with `dd conv=fsync` of as many bytes into the same folder, which is in the system's folder for
temporary files (set TMPDIR for another disk).
"""

from __future__ import annotations

import hashlib
import itertools
import subprocess
import time
from pathlib import Path
from typing import Any

import timing
import torch
import workloads
from torch import Tensor
from workloads import LARGE

from hookexp.runner import Runner


def runner_with_state() -> Runner:
    """A run of ours that has made one step, so that AdamW has its moments."""
    runner = workloads.build(LARGE, 1, "sinks=none", *workloads.NO_SAVES)
    runner.checkpointer.note_training()
    runner.optim_wrapper.backward(runner.forward_train(None)["loss"])
    runner.optim_wrapper.step()
    return runner


def tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value.detach()]
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in tensors_of(item)]
    return []


class Saves:
    """Saves of one run into its folder, one after another; only the newest file stays."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner
        self.names = (f"iter_{n}.pth" for n in itertools.count(1))
        self.last = ""

    def __call__(self) -> tuple[float, float]:
        """Seconds until training goes on, and until all is on the disk."""
        runner, name = self.runner, next(self.names)
        runner.save_checkpoint(name)
        began = time.perf_counter()
        runner.checkpointer.save_requested()
        stalled = time.perf_counter() - began
        runner.writer.wait()
        seconds = time.perf_counter() - began
        if self.last:
            (runner.work_dir / self.last).unlink()
        self.last = name
        return stalled, seconds

    @property
    def num_bytes(self) -> int:
        return (self.runner.work_dir / self.last).stat().st_size


def dd_seconds(folder: Path, num_bytes: int) -> float:
    target = folder / "dd"
    began = time.perf_counter()
    subprocess.run(
        ["dd", "if=/dev/zero", f"of={target}", "bs=1M", f"count={num_bytes >> 20}", "conv=fsync"],
        check=True,
        capture_output=True,
    )
    seconds = time.perf_counter() - began
    target.unlink()
    return seconds


def sha256_seconds(num_bytes: int) -> float:
    """The checksum alone, of bytes in memory: a save cannot be faster than this."""
    block = bytes(1 << 20)
    digest = hashlib.sha256()
    began = time.perf_counter()
    for _ in range(num_bytes >> 20):
        digest.update(block)
    return time.perf_counter() - began


def main() -> None:
    arguments = timing.arguments(__doc__, repeats=5)
    torch.set_num_threads(1)
    runner = runner_with_state()
    saves = Saves(runner)
    first = saves()[0]
    state = {"model": runner.model.state_dict(), "optimizer": runner.optimizer.state_dict()}
    sources = tensors_of(state)
    buffers = [torch.empty_like(t).copy_(t) for t in sources]

    def copy_into(targets: list[Tensor]) -> float:
        began = time.perf_counter()
        for target, source in zip(targets, sources, strict=True):
            target.copy_(source)
        return time.perf_counter() - began

    whole: list[float] = []

    def stall() -> float:
        stalled, seconds = saves()
        whole.append(seconds)
        return stalled

    best = timing.least(
        {
            "warm": lambda: copy_into(buffers),
            "stall": stall,
            "fresh": lambda: copy_into([torch.empty_like(t) for t in sources]),
            "dd": lambda: dd_seconds(runner.work_dir, saves.num_bytes),
            "sha256": lambda: sha256_seconds(saves.num_bytes),
        },
        arguments.repeats,
    )
    timing.print_environment()
    megabytes = saves.num_bytes / 1e6
    warm, stalled, fresh = best["warm"], best["stall"], best["fresh"]

    def row(name: str, seconds: float, target: str = "") -> tuple[str, ...]:
        beyond = f"{(seconds - warm) * 1e3:+.1f}"
        return name, f"{seconds * 1e3:.1f}", beyond, f"{seconds / warm:.2f}", target

    timing.print_table(
        (f"training stands still, {megabytes:.0f} MB", "ms", "beyond, ms", "ratio", "target"),
        [
            row("copy into memory that is kept", warm),
            row("our save", stalled, "1.2 x"),
            row("our first save of a run", first),
            row("copy into fresh memory", fresh),
        ],
    )
    print()
    ours, dd, sha256 = (megabytes / t for t in (min(whole), best["dd"], best["sha256"]))
    timing.print_table(
        ("on the disk, fsynced", "MB/s", "ratio", "target"),
        [
            ("dd conv=fsync", f"{dd:.0f}", "1.00", ""),
            ("sha256 alone, in memory", f"{sha256:.0f}", f"{sha256 / dd:.2f}", ""),
            ("our save, with its checksum", f"{ours:.0f}", f"{ours / dd:.2f}", "0.75 x"),
        ],
    )


if __name__ == "__main__":
    main()

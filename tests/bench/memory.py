"""Whether memory or the cost of an iteration grows as a run goes on.

    python tests/bench/memory.py

Memory: two processes import the same things, then one trains by hand and the other with all default
hooks, logging every 10 iterations to console, JSON lines and TensorBoard. What counts is how much
resident memory each has gained since its imports, the snapshot of a checkpoint aside (none is
saved).

Cost: one run really makes a million iterations, with all default hooks and log points, and a
training step that only hands over a ready loss (no model, no optimizer step), so that it takes a
minute or two and the host's work is all there is. Its clock is read every 100 iterations; the
least of a hundred such pieces counts.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import timing
import torch
import workloads
from workloads import NO_SAVES, STILL, TINY, Workload

from hookexp.hook import Hook, Priority

PIECE = 100
MARKS = (1_000, 10_000, 50_000, 100_000)


def resident_mb() -> float:
    """Resident memory of this process, from Linux's own account."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4096 / 1e6


class Stamps(Hook):
    """Reads the clock every `PIECE` iterations, and the memory at some."""

    priority = Priority.LOWEST

    def __init__(self) -> None:
        self.times: list[float] = []
        self.memory: dict[int, float] = {}

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        done = batch_idx + 1
        if done % PIECE == 0:
            self.times.append(time.perf_counter())
            if done in MARKS:
                self.memory[done] = resident_mb()


def stamped_run(workload: Workload, iters: int, *overrides: str) -> Stamps:
    runner = workloads.build(workload, iters, *NO_SAVES, *overrides)
    stamps = Stamps()
    runner.hooks.register(stamps, "stamps")
    with workloads.quiet():
        runner.run("train")
    return stamps


def memory_by_hand(iters: int) -> dict[int, float]:
    memory = {}
    model = TINY.model()
    optimizer = TINY.optimizer(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iters)
    for done, batch in enumerate(TINY.batches(iters), start=1):
        TINY.loss(model, batch).backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if done in MARKS:
            memory[done] = resident_mb()
    return memory


def child(name: str, iters: int) -> None:
    """Print the memory gained since the imports, by iteration, as JSON."""
    torch.set_num_threads(1)
    import tensorboard.compat.proto.event_pb2
    import tensorboard.compat.proto.summary_pb2  # noqa: F401

    # A short training first, so that what torch and Hydra load at first use is loaded.
    workloads.bare_us(replace(TINY, window=2), 10, with_schedule=True)
    workloads.build(TINY, 1, *NO_SAVES)
    before = resident_mb()
    memory = memory_by_hand(iters) if name == "bare" else stamped_run(TINY, iters).memory
    print(json.dumps({done: megabytes - before for done, megabytes in memory.items()}))


def gained(name: str, iters: int) -> dict[int, float]:
    command = [sys.executable, __file__, name, str(iters)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return {int(n): megabytes for n, megabytes in json.loads(done.stdout).items()}


def main() -> None:
    if sys.argv[1:2] in (["bare"], ["ours"]):
        child(sys.argv[1], int(sys.argv[2]))
        return
    arguments = timing.arguments(__doc__, iters=100_000, long_iters=1_000_000)
    torch.set_num_threads(1)
    bare, ours = gained("bare", arguments.iters), gained("ours", arguments.iters)
    stamps = stamped_run(STILL, arguments.long_iters, "hooks=-optimizer")
    timing.print_environment()
    rows = [
        (f"{n:,}", f"{bare[n]:.1f}", f"{ours[n]:.1f}", f"{ours[n] - bare[n]:+.1f}", target)
        for n, target in zip(bare, ["+20", *["no more"] * 3], strict=False)
    ]
    timing.print_table(("memory since the imports, MB", "bare", "ours", "beyond", "target"), rows)
    print()
    times = stamps.times
    pieces = [(b - a) / PIECE * 1e6 for a, b in pairwise(times)]
    count = min(100, len(pieces) // 3)
    # The first thousand iterations still fill the windows.
    start = min(1_000 // PIECE, count)
    early, late = min(pieces[start : start + count]), min(pieces[-count:])
    first, last = start * PIECE, arguments.long_iters - count * PIECE
    timing.print_table(
        ("cost of an iteration, the step aside", "us", "ratio", "target"),
        [
            (f"iterations {first:,} to {first + count * PIECE:,}", f"{early:.2f}", "1.00", ""),
            (
                f"iterations {last:,} to {arguments.long_iters:,}",
                f"{late:.2f}",
                f"{late / early:.2f}",
                "1.00 x",
            ),
        ],
    )


if __name__ == "__main__":
    main()

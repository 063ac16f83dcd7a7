"""A realistic step on a GPU with all default hooks, against the same loop by hand. Needs CUDA.

    python tests/bench/gpu_step.py

A ResNet for 32x32 images (three stages of three blocks, 64 to 256 channels, batch 512), bf16,
channels_last, compiled, batches on the device. Both loops wait for the device every `WINDOW`
iterations to read the clock, and nowhere else by their own will.
"""

from __future__ import annotations

import statistics
import time
from itertools import pairwise
from typing import Any

import timing
import torch
import workloads
from workloads import NO_SAVES, ON_GPU

from hookexp.hook import Hook, Priority

WINDOW = 100
WARM_UP = 2
"""Windows at the start that do not count: compilation, and choosing kernels."""


def now() -> float:
    torch.cuda.synchronize()
    return time.perf_counter()


class Windows(Hook):
    """Reads the clock at the end of each window."""

    priority = Priority.LOWEST

    def __init__(self) -> None:
        self.times: list[float] = []

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if (batch_idx + 1) % WINDOW == 0:
            self.times.append(now())


def by_hand(iters: int) -> list[float]:
    model = ON_GPU.model().to("cuda", memory_format=torch.channels_last).train()
    optimizer = ON_GPU.optimizer(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iters)
    loss_of = torch.compile(ON_GPU.loss)
    times = []
    for done, batch in enumerate(ON_GPU.batches(iters, "cuda"), start=1):
        with torch.autocast("cuda", dtype=torch.bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if done % WINDOW == 0:
            times.append(now())
    return times


def by_us(iters: int) -> list[float]:
    runner = workloads.build(
        ON_GPU,
        iters,
        *NO_SAVES,
        "trainer.device=cuda",
        "trainer.precision=bf16",
        "trainer.channels_last=true",
        "trainer.compile=true",
    )
    windows = Windows()
    runner.hooks.register(windows, "windows")
    with workloads.quiet():
        runner.run("train")
    return windows.times


def ms_per_iter(times: list[float]) -> list[float]:
    times = times[WARM_UP - 1 :]
    return [(b - a) / WINDOW * 1e3 for a, b in pairwise(times)]


def main() -> None:
    arguments = timing.arguments(__doc__, iters=1000, repeats=3)
    if not torch.cuda.is_available():
        print("needs a CUDA device, and there is none here")
        return
    bare: list[float] = []
    ours: list[float] = []
    for _ in range(arguments.repeats):
        torch.compiler.reset()
        bare += ms_per_iter(by_hand(arguments.iters))
        torch.compiler.reset()
        ours += ms_per_iter(by_us(arguments.iters))
    timing.print_environment()
    rows = []
    for name, statistic in (("least", min), ("median", statistics.median)):
        a, b = statistic(bare), statistic(ours)
        rows.append((name, f"{a:.3f}", f"{b:.3f}", f"{(b - a) * 1e3:+.1f}", f"{b / a:.3f}"))
    timing.print_table(
        ("ms per iteration", "bare", "ours", "beyond, us", "ratio", "target"),
        [(*row, target) for row, target in zip(rows, ("1.01 x", ""), strict=True)],
    )


if __name__ == "__main__":
    main()

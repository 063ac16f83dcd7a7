"""What an iteration costs beyond the loop one would write by hand, in microseconds.

    python tests/bench/overhead.py

A tiny MLP (32 -> 32 -> 10, batch 8, SGD with momentum, batches in memory) on one thread, against a
bare loop in the same process: repeats are interleaved and the least of each counts, since other
work on the machine only ever adds.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import torch
from fakes import TinyTask
from hydra import compose, initialize_config_dir
from torch import nn

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_runner
from hookexp.compose.conf_dir import conf_dir
from hookexp.hook import Hook

HERE = "overhead"
SAME_OPTIMIZER = ["optimizer.lr=0.1", "optimizer.nesterov=false", "optimizer.weight_decay=0"]


class Classify(TinyTask):
    def train_step(self, model: nn.Module, batch: Any) -> dict[str, Any]:
        return {"loss": nn.functional.cross_entropy(model(batch[0]), batch[1])}


class NoOp(Hook):
    def before_train_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:
        pass

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        pass


class Batches:
    """A hundred batches in memory, again and again."""

    def __init__(self, num_batches: int) -> None:
        generator = torch.Generator().manual_seed(0)
        self.some = [
            (
                torch.randn(8, 32, generator=generator),
                torch.randint(0, 10, (8,), generator=generator),
            )
            for _ in range(100)
        ]
        self.num_batches = num_batches

    def __iter__(self) -> Any:
        return (self.some[n % 100] for n in range(self.num_batches))

    def __len__(self) -> int:
        return self.num_batches


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


def bare(iters: int, with_schedule: bool) -> float:
    model = mlp()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iters)
    batches = Batches(iters)
    began = time.perf_counter()
    for inputs, targets in batches:
        loss = nn.functional.cross_entropy(model(inputs), targets)
        loss.backward()
        optimizer.step()
        if with_schedule:
            schedule.step()
        optimizer.zero_grad()
    return time.perf_counter() - began


def ours(iters: int, *overrides: str, num_no_ops: int = 0) -> float:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose(
            "config",
            overrides=[
                "trainer.device=cpu",
                f"trainer.max_iters={iters}",
                *SAME_OPTIMIZER,
                *overrides,
            ],
        )
    cfg.model = {"_target_": f"{HERE}.mlp"}
    cfg.task = {"_target_": f"{HERE}.Classify"}
    cfg.data.train = {"_target_": f"{HERE}.Batches", "num_batches": iters}
    cfg.data.val = None
    runner = build_runner(cfg, Path(tempfile.mkdtemp()))
    for number in range(num_no_ops):
        runner.hooks.register(NoOp(), f"no_op_{number}")
    # What happens once, before and after the loop, is not the cost of an iteration.
    loop, seconds = runner.train_loop.run, [0.0]

    def timed() -> None:
        began = time.perf_counter()
        loop()
        seconds[0] = time.perf_counter() - began

    runner.train_loop.run = timed
    runner.run("train")
    return seconds[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--iters", type=int, default=5000)
    parser.add_argument("--repeats", type=int, default=7)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    sys.modules[HERE] = sys.modules["__main__"]
    log = logging.getLogger("hookexp")
    log.propagate = False
    log.setLevel(logging.INFO)
    log.addHandler(logging.FileHandler(Path(tempfile.mkdtemp()) / "run.log"))
    lean = ["hooks=none", "+hooks/optimizer=default", "sinks=none", "param_scheduler=none"]
    default = ["hooks.checkpoint.interval=-1", "hooks.checkpoint.save_last=false"]
    iters = arguments.iters
    cases: dict[str, Callable[[], float]] = {
        "bare loop": lambda: bare(iters, with_schedule=False),
        "bare loop with a schedule": lambda: bare(iters, with_schedule=True),
        "the optimizer hook alone": lambda: ours(iters, *lean),
        "and a hundred no-op hooks": lambda: ours(iters, *lean, num_no_ops=100),
        "default hooks and sinks": lambda: ours(iters, *default),
    }
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(arguments.repeats):
        for name, case in cases.items():
            best[name] = min(best[name], case() / iters * 1e6)
    plain, scheduled, lean_cost, crowd, full = best.values()
    print(f"{'':36}{'us/iter':>9}{'beyond':>9}{'target':>9}")
    rows = [
        ("bare loop", plain, None, None),
        ("bare loop with a schedule", scheduled, None, None),
        ("the optimizer hook alone", lean_cost, lean_cost - plain, 5),
        ("and a hundred no-op hooks", crowd, crowd - lean_cost, 15),
        ("default hooks and sinks", full, full - scheduled, 30),
    ]
    for name, cost, beyond, target in rows:
        extra = "" if beyond is None else f"{beyond:+9.1f}{target:+9d}"
        print(f"{name:36}{cost:9.1f}{extra}")


if __name__ == "__main__":
    main()

"""From the command to the first iteration, and to a printed config.

    python tests/bench/startup.py

Processes are started one after another, in turns, and the least of each counts. The bare script
imports torch, makes a model and an optimizer and takes one step; the bare Hydra app is one file
with a config of three keys.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import timing
import workloads

BARE_SCRIPT = """
import time
import torch
from torch import nn
model = nn.Sequential(nn.Conv2d(1, 32, 3), nn.BatchNorm2d(32), nn.ReLU(), nn.Flatten(),
                      nn.Linear(32 * 36, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
images, labels = torch.rand(64, 1, 8, 8), torch.randint(0, 10, (64,))
nn.functional.cross_entropy(model(images), labels).backward()
optimizer.step()
print(f"FIRST {time.monotonic()}", flush=True)
"""

BARE_HYDRA = """
import hydra

@hydra.main(version_base="1.3", config_path=".", config_name="config")
def main(cfg):
    print(cfg)

if __name__ == "__main__":
    main()
"""

LOOK_FOR_TORCH = """
import runpy, sys
sys.argv[1:] = ["--cfg", "job"]
try:
    runpy.run_module("hookexp", run_name="__main__", alter_sys=True)
except SystemExit:
    pass
print("LOADED", sorted({name.partition(".")[0] for name in sys.modules} & {
    "torch", "numpy", "tensorboard", "rich", "wandb", "torchmetrics"}))
"""


class FirstIteration:
    """A hook that says when the first iteration is over, and leaves."""

    priority = 100

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        print(f"FIRST {time.monotonic()}", flush=True)
        os._exit(0)


def output_of(command: Sequence[str], cwd: Path) -> str:
    here = Path(__file__).resolve().parent
    paths = [str(here), str(here.parent.parent), os.environ.get("PYTHONPATH", "")]
    done = subprocess.run(
        [sys.executable, *command],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{command} failed:\n{done.stderr}")
    return done.stdout


def to_first_step(command: Sequence[str], cwd: Path) -> Callable[[], float]:
    def measure() -> float:
        began = time.monotonic()
        lines = output_of(command, cwd).splitlines()
        stamp = next(line for line in lines if line.startswith("FIRST "))
        return float(stamp.split()[1]) - began

    return measure


def to_the_end(command: Sequence[str], cwd: Path) -> Callable[[], float]:
    def measure() -> float:
        began = time.monotonic()
        output_of(command, cwd)
        return time.monotonic() - began

    return measure


def main() -> None:
    arguments = timing.arguments(__doc__, repeats=5)
    cwd = workloads.folder()
    (cwd / "bare.py").write_text(BARE_SCRIPT)
    (cwd / "bare_hydra.py").write_text(BARE_HYDRA)
    (cwd / "config.yaml").write_text("name: bare\nlr: 0.1\nmodel: {width: 32}\n")
    first = "+hooks.first._target_=startup.FirstIteration"
    best = timing.least(
        {
            "script": to_first_step(["bare.py"], cwd),
            "ours": to_first_step(["-m", "hookexp", first], cwd),
            "hydra": to_the_end(["bare_hydra.py", "--cfg", "job"], cwd),
            "config": to_the_end(["-m", "hookexp", "--cfg", "job"], cwd),
        },
        arguments.repeats,
    )
    timing.print_environment()
    rows = []
    for name, ours, bare, target in (
        ("python -m hookexp, to the first iteration", "ours", "script", "+1.0 s"),
        ("python -m hookexp --cfg job", "config", "hydra", "2 x"),
    ):
        beyond = f"{best[ours] - best[bare]:+.2f}"
        ratio = f"{best[ours] / best[bare]:.2f}"
        rows.append((name, f"{best[ours]:.2f}", f"{best[bare]:.2f}", beyond, ratio, target))
    timing.print_table(("seconds", "ours", "bare", "beyond", "ratio", "target"), rows)
    loaded = output_of(["-c", LOOK_FOR_TORCH], cwd).splitlines()[-1]
    print(f"heavy packages that --cfg job imports (target: none): {loaded.removeprefix('LOADED ')}")


if __name__ == "__main__":
    main()

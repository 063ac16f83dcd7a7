"""What the benchmarks train: models, batches in memory, the loop by hand, and a run of ours."""

from __future__ import annotations

import logging
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import timing
import torch
from hydra import compose
from torch import Tensor, nn
from torch.optim import Optimizer

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_runner
from hookexp.compose.conf_dir import with_hydra
from hookexp.hook import Hook
from hookexp.log import ConsoleHandler, FileFormatter
from hookexp.runner import Runner
from hookexp.task import Task

LEAN = ("hooks=none", "+hooks/optimizer=default", "sinks=none", "param_scheduler=none")
"""What a loop by hand does and no more: forward, backward, step, zero_grad."""

_FOLDERS = tempfile.TemporaryDirectory(prefix="hookexp_bench_")

NO_SAVES = ("hooks.checkpoint.interval=-1", "hooks.checkpoint.save_last=false")

# -- batches and models -------------------------------------------------------------------------


class Batches:
    """A few ready batches in memory, again and again, that read the clock as they are fetched.

    Every loop fetches its batches, so this is the one stopwatch for loops of all frameworks.

    Args:
        distinct: how many batches there really are.
        window: batches between two looks at the clock.
    """

    def __init__(
        self,
        num_batches: int,
        batch_size: int = 8,
        shape: Sequence[int] = (32,),
        distinct: int = 100,
        window: int = 100,
        device: str = "cpu",
    ) -> None:
        generator = torch.Generator().manual_seed(0)
        layout = torch.contiguous_format if device == "cpu" else torch.channels_last
        self.some = []
        for _ in range(distinct):
            inputs = torch.randn(batch_size, *shape, generator=generator)
            targets = torch.randint(0, 10, (batch_size,), generator=generator)
            self.some.append((inputs.to(device, memory_format=layout), targets.to(device)))
        self.num_batches = num_batches
        self.window = window
        self.dataset = self

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        some, window = self.some, self.window
        for n in range(self.num_batches):
            if n % window == 0:
                timing.lap(is_first=n == 0)
            yield some[n % len(some)]

    def __len__(self) -> int:
        return self.num_batches


def us_per_iteration(workload: Workload) -> float:
    """Of the loop that was run last: its fastest window, the first one aside."""
    windows = timing.windows()[1:]
    assert windows, "the loop was shorter than three windows"
    return min(windows) / workload.window * 1e6


def mlp() -> nn.Module:
    return nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))


class Residual(nn.Module):
    """Two 3x3 convolutions beside a shortcut (He et al. 2015, arXiv:1512.03385)."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            nn.Conv2d(channels, channels, 3, 1, 1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or channels_in != channels:
            self.shortcut = nn.Sequential(
                nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.body(images) + self.shortcut(images))


def resnet(width: int = 16, blocks: int = 2) -> nn.Module:
    """Three stages for 32x32 images, logits of 10 classes."""
    stages: list[nn.Module] = []
    channels_in = width
    for stage in range(3):
        for block in range(blocks):
            channels = width * 2**stage
            stages.append(Residual(channels_in, channels, 2 if stage > 0 and block == 0 else 1))
            channels_in = channels
    stem = (nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU())
    head = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels_in, 10))
    return nn.Sequential(*stem, *stages, *head)


def wide_resnet() -> nn.Module:
    return resnet(width=64, blocks=3)


def large() -> nn.Module:
    """30 million weights in 115 tensors."""
    return nn.Sequential(*(nn.Linear(512, 512, bias=False) for _ in range(115)))


def sgd(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.SGD(parameters, lr=0.1, momentum=0.9, fused=True)


def adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return torch.optim.AdamW(parameters, lr=1e-3, fused=True)


def cross_entropy(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


def stand_still(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """No forward pass: a loss of one weight, so that what the host does stands out."""
    return next(model.parameters()).view(-1)[0] * 1.0


def ready(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """No arithmetic at all."""
    return _READY


_READY = torch.tensor(1.0)


def every_weight(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    """No forward pass, but a gradient for each weight."""
    return torch.stack([parameter.mean() for parameter in model.parameters()]).sum()


@dataclass(frozen=True)
class Workload:
    """A model, its loss and optimizer, and the shape of its batches; functions of this module."""

    model: Callable[[], nn.Module] = mlp
    loss: Callable[[nn.Module, Any], Tensor] = cross_entropy
    optimizer: Callable[[Iterable[nn.Parameter]], Optimizer] = sgd
    batch_size: int = 8
    shape: tuple[int, ...] = (32,)
    distinct: int = 100
    window: int = 100

    def batches(self, num_batches: int, device: str = "cpu") -> Batches:
        return Batches(num_batches, self.batch_size, self.shape, self.distinct, self.window, device)


TINY = Workload()
REALISTIC = Workload(resnet, batch_size=64, shape=(3, 32, 32), distinct=10, window=2)
REALISTIC_STANDING = replace(REALISTIC, loss=stand_still)
"""The parameters and the batches of the realistic step without its arithmetic."""
STILL = Workload(loss=ready)
ON_GPU = Workload(wide_resnet, batch_size=512, shape=(3, 32, 32), distinct=10)
LARGE = Workload(large, every_weight, adamw)


class LossTask(Task):
    """A workload's loss as a task, by its name in this module."""

    def __init__(self, loss: str) -> None:
        self.loss = getattr(sys.modules[__name__], loss)

    def train_step(self, model: nn.Module, batch: Any) -> dict[str, Any]:
        return {"loss": self.loss(model, batch)}

    def val_step(self, model: nn.Module, batch: Any) -> dict[str, Any]:
        return {}


class NoOp(Hook):
    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
        pass

    def after_train_iter(
        self, runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        pass


# -- one training, by hand and by us ------------------------------------------------------------


def bare_us(workload: Workload, iters: int, with_schedule: bool = False) -> float:
    """The loop one would write by hand, with the calls that a run of ours makes for it."""
    model = workload.model().train()
    optimizer = workload.optimizer(model.parameters())
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iters)
    loss_of = workload.loss
    for batch in workload.batches(iters):
        loss = loss_of(model, batch)
        loss.backward()
        optimizer.step()
        if with_schedule:
            schedule.step()
        optimizer.zero_grad()
    return us_per_iteration(workload)


def build(workload: Workload, iters: int, *overrides: str, num_no_ops: int = 0) -> Runner:
    """A run of ours over the same batches, model and optimizer as the loop by hand."""
    set_up_logging()
    with with_hydra():
        cfg = compose(
            "config",
            overrides=["trainer.device=cpu", f"trainer.max_iters={iters}", *overrides],
        )
    cfg.model = {"_target_": f"workloads.{workload.model.__name__}"}
    cfg.optimizer = {
        "_target_": f"workloads.{workload.optimizer.__name__}",
        "_partial_": True,
    }
    cfg.task = {"_target_": "workloads.LossTask", "loss": workload.loss.__name__}
    cfg.data.train = {
        "_target_": "workloads.Batches",
        "num_batches": iters,
        "batch_size": workload.batch_size,
        "shape": list(workload.shape),
        "distinct": workload.distinct,
        "window": workload.window,
        "device": cfg.trainer.device,
    }
    cfg.data.val = None
    with quiet():
        runner = build_runner(cfg, folder())
    for number in range(num_no_ops):
        runner.hooks.register(NoOp(), f"no_op_{number}")
    return runner


def our_us(workload: Workload, iters: int, *overrides: str, num_no_ops: int = 0) -> float:
    runner = build(workload, iters, *overrides, num_no_ops=num_no_ops)
    with quiet():
        runner.run("train")
    return us_per_iteration(workload)


@cache
def set_up_logging() -> None:
    """As `conf/hydra/job_logging` does it: every message to the terminal and to a file."""
    log = logging.getLogger("hookexp")
    log.propagate = False
    log.setLevel(logging.INFO)
    file = logging.FileHandler(folder() / "run.log")
    file.setFormatter(FileFormatter())
    log.handlers = [ConsoleHandler(), file]


def folder() -> Path:
    """A new empty folder, which is gone when the process ends."""
    return Path(tempfile.mkdtemp(dir=_FOLDERS.name))


def quiet() -> Any:
    """What is printed is formatted and written, but not shown."""
    return redirect_stdout(open("/dev/null", "w"))

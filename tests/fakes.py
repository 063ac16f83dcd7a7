"""Small real parts of a run: a model, data in memory, a task, and a hook that writes down calls."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from hookexp.hook import MOUNT_POINTS, Hook, Priority
from hookexp.task import Task


class TinyModel(nn.Module):
    """Two linear layers with batch norm between them: parameters and buffers."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.inner = nn.Linear(4, width)
        self.norm = nn.BatchNorm1d(width)
        self.outer = nn.Linear(width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.outer(torch.relu(self.norm(self.inner(inputs))))


class TinyData:
    """`size` rows with a linear target, served from memory; counts what is read."""

    def __init__(self, size: int = 24) -> None:
        generator = torch.Generator().manual_seed(0)
        self.inputs = torch.randn(size, 4, generator=generator)
        self.targets = self.inputs.sum(1, keepdim=True)
        self.num_read = 0

    def __len__(self) -> int:
        return len(self.inputs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.inputs[index], self.targets[index]

    def get_batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        self.num_read += len(indices)
        return self.inputs[indices], self.targets[indices]


class TinyTask(Task):
    """Squared error; the metrics are `accuracy` (a falling error, turned round) and `loss`."""

    metric_names = ("accuracy", "loss")

    def __init__(self, scripted_accuracy: list[float] | None = None) -> None:
        self.scripted_accuracy = list(scripted_accuracy or [])
        self._losses: list[Tensor] = []

    def train_step(self, model: nn.Module, batch: Any) -> dict[str, Any]:
        inputs, targets = batch
        return {"loss": nn.functional.mse_loss(model(inputs), targets)}

    def val_step(self, model: nn.Module, batch: Any) -> dict[str, Any]:
        inputs, targets = batch
        loss = nn.functional.mse_loss(model(inputs), targets)
        self._losses.append(loss)
        return {"loss": loss}

    def reset_metrics(self) -> None:
        self._losses = []

    def compute_metrics(self) -> dict[str, Tensor]:
        loss = torch.stack(self._losses).mean()
        accuracy = 1 / (1 + loss)
        if self.scripted_accuracy:
            accuracy = torch.tensor(self.scripted_accuracy.pop(0))
        return {"accuracy": accuracy, "loss": loss}


def _record(point: str) -> Any:
    def method(self: Any, runner: Any, *args: Any, **kwargs: Any) -> None:
        self.calls.append((point, runner.epoch, runner.iter))

    method.__name__ = point
    return method


class StopAt(Hook):
    """Stops a run after an iteration, counted from 1, as a signal does."""

    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(
        self, runner: Any, batch_idx: int, data_batch: Any = None, outputs: Any = None
    ) -> None:
        if runner.iter + 1 == self.iteration:
            runner.state.stop("told to", urgent=True)


class Recorder(Hook):
    """Writes down every mount point with the epoch and the iteration it sees."""

    priority = Priority.LOWEST

    def __init__(self) -> None:
        self.calls: list[tuple[str, int, int]] = []

    @property
    def points(self) -> list[str]:
        return [point for point, _, _ in self.calls]


for _point in MOUNT_POINTS:
    setattr(Recorder, _point, _record(_point))

"""`SupervisedTask`: one model, data of (inputs, targets), a loss and metrics."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from hookexp.errors import ConfigError, kind_of
from hookexp.task import Task

if TYPE_CHECKING:
    from hookexp.hook import Batch
    from hookexp.runner import Runner


class SupervisedTask(Task):
    """Compares what a model makes of the inputs with the targets.

    Args:
        loss: called with (outputs, targets), gives a scalar tensor that is a mean over the batch;
            a module is moved to the run's device.
        metrics: metrics of torchmetrics by the name they are logged and monitored under; each is
            updated with (outputs, targets) and computes a scalar. `loss`, the mean over all
            samples of an evaluation, comes in addition.

    Raises:
        ValueError: for a loss that cannot be called, and for a metric that is called `loss`, or
            that is not a metric.
    """

    def __init__(self, loss: Callable[[Any, Any], Tensor], metrics: Mapping[str, Metric]) -> None:
        if not callable(loss):
            raise ValueError(
                f"loss={loss}: has to be a function of (outputs, targets), such as "
                "_target_: torch.nn.MSELoss"
            )
        if not isinstance(metrics, Mapping):
            raise ValueError(f"metrics={metrics}: has to be a mapping of names to metrics, or {{}}")
        if "loss" in metrics:
            raise ValueError(
                "task.metrics.loss: the mean loss is always measured under the name 'loss'; "
                "give this metric another name"
            )
        for name, metric in metrics.items():
            if not isinstance(metric, Metric):
                raise ValueError(
                    f"task.metrics.{name} is {kind_of(metric)}; it has to be a metric of "
                    "torchmetrics, such as _target_: torchmetrics.classification.MulticlassAccuracy"
                )
        self.loss = loss
        self.metrics: dict[str, Metric] = {**metrics, "loss": MeanLoss()}
        self.metric_names = tuple(self.metrics)

    def setup(self, runner: Runner) -> None:
        if isinstance(self.loss, nn.Module):
            self.loss.to(runner.device)
        for metric in self.metrics.values():
            metric.to(runner.device)

    def train_step(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        inputs, targets = _pair(batch)
        return {"loss": self.loss(_in_full_precision(model(inputs)), targets)}

    def val_step(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """The model's outputs as `predictions` and the batch's mean `loss`; nothing waits."""
        inputs, targets = _pair(batch)
        predictions = _in_full_precision(model(inputs))
        loss = self.loss(predictions, targets)
        for name, metric in self.metrics.items():
            if name == "loss":
                metric.update(loss, num_samples=_num_samples(inputs, targets))
            else:
                metric.update(predictions, targets)
        return {"predictions": predictions, "loss": loss}

    def reset_metrics(self) -> None:
        for metric in self.metrics.values():
            metric.reset()

    def compute_metrics(self) -> dict[str, Tensor]:
        """All metrics since `reset_metrics`, over all ranks; NaN where no batch was seen."""
        return {
            name: metric.compute()
            if metric.update_called
            else torch.full((), torch.nan, device=metric.device)
            for name, metric in self.metrics.items()
        }


class MeanLoss(Metric):
    """The mean over samples of a loss that is known as the mean of each batch.

    A metric, so that ranks are summed like every other metric's; its own, because that of
    torchmetrics looks for NaN at each update, which makes the host wait for the device.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    loss_sum: Tensor
    num_samples: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("loss_sum", default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("num_samples", default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, loss: Tensor, num_samples: int) -> None:
        self.loss_sum += loss.float() * num_samples
        self.num_samples += num_samples

    def compute(self) -> Tensor:
        return self.loss_sum / self.num_samples


def _pair(batch: Batch) -> tuple[Any, Any]:
    is_list = isinstance(batch, (tuple, list))
    if isinstance(batch, Mapping | Tensor) or (is_list and len(batch) != 2):
        given = f"{type(batch).__name__} of {len(batch)}" if is_list else type(batch).__name__
        raise ConfigError(
            f"task: SupervisedTask takes batches of (inputs, targets), and this one is a {given}; "
            "have the data set or data.collate_fn give pairs, or write a task of your own"
        )
    inputs, targets = batch
    return inputs, targets


def _in_full_precision(outputs: Any) -> Any:
    """Half-precision logits as float32: losses and metrics lose digits in sums over a batch."""
    if isinstance(outputs, Tensor) and outputs.dtype in (torch.bfloat16, torch.float16):
        return outputs.float()
    return outputs


def _num_samples(inputs: Any, targets: Any) -> int:
    """Length of the batch: of targets that are a tensor, or a dict of some, else of the inputs.

    A list may be of the samples or of several targets, so its own length counts last.
    """
    while isinstance(targets, Mapping):
        targets = next(iter(targets.values()))
    tensors = (part for part in (targets, inputs) if isinstance(part, Tensor))
    return len(next(tensors, targets))

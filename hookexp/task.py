"""The `Task`: what a model is trained to do. It turns batches into losses and metrics."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn

from hookexp.errors import ConfigError, kind_of

if TYPE_CHECKING:
    from hookexp.hook import Batch
    from hookexp.runner import Runner


class Task(ABC):
    """The forward pass and what is measured about it; everything around it is a hook.

    The runner moves batches to the device and enters autocast before it calls a step, and puts
    the model into train or eval mode. What training changes among the attributes is in checkpoints:
    losses and other modules, parameters, and numbers, detached tensors, lists, tuples and dicts of
    them that change within the first steps. A task with a state of another kind has `state_dict`
    and `load_state_dict`, of plain types and tensors, and says all of it there.
    """

    metric_names: Sequence[str] = ()
    """The names `compute_metrics` will return, known before the first batch."""
    trains: ClassVar[bool] = False
    """Whether `train_step` steps the optimizers itself, for a run without the optimizer hook."""

    def setup(self, runner: Runner) -> None:
        """Called once, when model and device are known: move losses and metrics there."""

    @abstractmethod
    def train_step(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """One forward pass: a dict with the scalar tensor `"loss"` and further scalars to log."""

    @abstractmethod
    def val_step(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """Predictions for one batch; updates the metrics."""

    def test_step(self, model: nn.Module, batch: Batch) -> dict[str, Any]:
        """As `val_step`, for the test data."""
        return self.val_step(model, batch)

    def reset_metrics(self) -> None:
        """Forget the batches of the last evaluation."""

    def compute_metrics(self) -> dict[str, Tensor]:
        """The metrics over all batches since `reset_metrics`, on the device."""
        return {}


def loss_of(outputs: Any) -> Tensor:
    """The loss among what `train_step` returned, a tensor of one element.

    Raises:
        ConfigError: if there is none; it says what there is.
    """
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
    if isinstance(loss, Tensor) and loss.numel() == 1:
        return loss
    if not isinstance(outputs, Mapping):
        given = f"returned {kind_of(outputs)}"
    elif "loss" not in outputs:
        given = f"returned {sorted(outputs)}, and has no loss"
    else:
        shape = f" of shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else ""
        given = f"returned {sorted(outputs)}, and loss is {kind_of(loss)}{shape}"
    raise ConfigError(
        f"task: train_step has to return a dict with the scalar tensor 'loss'; it {given}. "
        "A task that steps by itself: hooks=-optimizer"
    )

"""Puts what a run is and does into the message hub: versions, lr, losses and metrics.

python -m hookexp hooks=-runtime_info        # without it nothing is logged
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping
from numbers import Real
from typing import Any

import torch
from torch import Tensor

from hookexp.errors import ConfigError
from hookexp.hook import Batch, Hook, Priority
from hookexp.runner import Runner


class RuntimeInfoHook(Hook):
    """Tensors stay on their device: nothing here makes the host wait."""

    priority = Priority.VERY_HIGH

    def before_run(self, runner: Runner) -> None:
        hub = runner.message_hub
        hub.update_info("cfg", runner.cfg)
        hub.update_info("seed", runner.seed)
        hub.update_info("experiment_name", runner.experiment_name)
        hub.update_info("torch_version", str(torch.__version__))
        hub.update_info("python_version", platform.python_version())
        hub.update_info("device", str(runner.device))
        hub.update_info("git_commit", _git_commit())

    def before_train(self, runner: Runner) -> None:
        hub = runner.message_hub
        hub.update_info("epoch", runner.epoch)
        hub.update_info("iter", runner.iter)
        hub.update_info("max_epochs", runner.max_epochs)
        hub.update_info("max_iters", runner.max_iters)

    def before_train_epoch(self, runner: Runner) -> None:
        runner.message_hub.update_info("epoch", runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        hub = runner.message_hub
        hub.update_info("iter", runner.iter)
        for name, optimizer in runner.optim_wrapper.optimizers.items():
            key = "train/lr" if name == "default" else f"train/lr/{name}"
            for index, group in enumerate(optimizer.param_groups):
                lr = group["lr"]
                # A tensor lr is updated in place, so the value of this iteration has to be copied.
                lr = lr.clone() if isinstance(lr, Tensor) else lr
                hub.update_scalar(key if index == 0 else f"{key}/{index}", lr)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        hub = runner.message_hub
        for key, value in (outputs or {}).items():
            if isinstance(value, Tensor):
                if value.numel() != 1:
                    raise ConfigError(
                        f"task: train_step returned {key!r} of shape {tuple(value.shape)}; "
                        "only scalars can be logged: return its mean, or leave it out"
                    )
            elif not isinstance(value, Real):
                raise ConfigError(
                    f"task: train_step returned {key!r} of type {type(value).__name__}; "
                    "only numbers and tensors of one element can be logged"
                )
            hub.update_scalar(f"train/{key}", value)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        _note_metrics(runner, "val", metrics or {})

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        _note_metrics(runner, "test", metrics or {})


def _note_metrics(runner: Runner, mode: str, metrics: Mapping[str, Any]) -> None:
    for key, value in metrics.items():
        if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1):
            runner.message_hub.update_scalar(f"{mode}/{key}", value)
        else:
            runner.message_hub.update_info(f"{mode}/{key}", value)


def _git_commit() -> str | None:
    """The commit of the code in the current folder, None outside a repository."""
    try:
        found = subprocess.run(
            ["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return found.stdout.strip() or None

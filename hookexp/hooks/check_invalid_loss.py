"""Keeps a loss or a gradient that is not finite from reaching the weights, and reports it.

python -m hookexp hooks=+check_invalid_loss
python -m hookexp hooks=+check_invalid_loss hooks.check_invalid_loss.action=skip
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hookexp import dist
from hookexp.errors import NotFiniteError
from hookexp.hook import Batch, Hook, Priority
from hookexp.message_hub import MessageHub
from hookexp.numeric import require_whole
from hookexp.optim.guard import (
    KeptTensors,
    StepGuard,
    agreed,
    all_finite,
    both,
    gradients_of,
    keep_floats,
    skips_on_device,
)
from hookexp.optim.states import config_path
from hookexp.runner import Runner

ACTIONS = ("raise", "stop", "skip")
_SHOWN = 10


class CheckInvalidLossHook(Hook):
    """One NaN that gets into the weights ends a run; looking for it on the host slows every step.

    So the guard is on the device: at `before_optim_step` a flag is computed there, and a fused
    optimizer (`optimizer.fused=true`, which all of ours have) reads it in its kernel and leaves
    weights and state as they were: no decay, no momentum, no step counted. The model's
    floating-point buffers, such as the statistics of a batch norm, are put back too. An optimizer
    that is not fused makes the host wait for the flag at every step, which is said once.

    What was found is read every `interval` iterations and at the end of training; at a log point
    it is the copy of the logged scalars that brings it.

    Watched are the gradients, and all outputs of `train_step` whose name contains `loss`, unless
    they are whole numbers. A bad batch costs the whole accumulation window it is in. With fp16 the
    gradient scaler is the guard, and gradients that overflow are normal: there the losses alone are
    watched. Schedules and averages of the weights go on, since on the host nobody knows yet that a
    step was left out.

    Args:
        interval: iterations between two reports.
        action: `raise` an error, `stop` (the last state is saved as at the end of a run), or
            `skip`: warn, go on, and log the number of bad batches as `skipped`.

    Raises:
        ValueError: for another action or interval.
        NotFiniteError: in a run with action=raise; it names the iterations, counted from 1.
    """

    priority = Priority.NORMAL
    after = ("optimizer",)

    def __init__(self, interval: int = 50, action: str = "raise") -> None:
        require_whole("interval", interval, of="iterations")
        if action not in ACTIONS:
            raise ValueError(f"action={action}: use one of {', '.join(ACTIONS)}")
        self.interval = interval
        self.action = action
        self.num_skipped = 0
        self._found: list[tuple[int, str]] = []
        self._unread: list[tuple[int, Tensor, Tensor]] = []
        self._losses_fine: Tensor | None = None
        self._gradients_fine: Tensor | None = None
        self._window_fine: Tensor | None = None
        self._old_outputs: Mapping[str, Any] = {}
        self._buffers: list[KeptTensors] = []
        self._guard = StepGuard([])
        self._hub = MessageHub()

    def before_train(self, runner: Runner) -> None:
        self._hub = runner.message_hub
        wrapper = runner.optim_wrapper
        self._buffers = keep_floats(dist.unwrap(runner.model).buffers())
        self._guard = StepGuard([] if wrapper.scaler.is_enabled() else wrapper.optimizers.values())
        for name, optimizer in wrapper.optimizers.items():
            if self._guard.optimizers and not skips_on_device(optimizer):
                runner.logger.warning(
                    "check_invalid_loss: %s is not fused and cannot skip a step on the device, so "
                    "the host waits for it at every step; set %s.fused=true if it has that",
                    *(type(optimizer).__name__, config_path(name)),
                )
        if self.action == "skip":
            runner.message_hub.set_gauge("train/skipped", lambda: float(self.num_skipped))

    @torch.no_grad()
    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        self._losses_fine = self._gradients_fine = None
        self._old_outputs = runner.outputs
        for kept in self._buffers:
            kept.remember()

    @torch.no_grad()
    def before_optim_step(self, runner: Runner) -> None:
        """A task that steps by itself calls this too, before its outputs are there."""
        if not self._guard.optimizers:
            return
        fine = all_finite(gradients_of(self._guard.optimizers), runner.device)
        # In a window with a bad loss the gradients are bad as well: that was one bad batch.
        news = fine if self._window_fine is None else fine | ~self._window_fine
        self._gradients_fine = both(news, self._gradients_fine)
        if runner.outputs is not self._old_outputs:
            self._losses_fine = all_finite(_losses(runner.outputs), runner.device)
        fine = both(both(fine, self._losses_fine), self._window_fine)
        self._window_fine = None
        self._guard.allow_if(agreed(fine))

    @torch.no_grad()
    def after_optim_step(self, runner: Runner) -> None:
        self._guard.release()

    @torch.no_grad()
    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        losses_fine, gradients_fine = self._losses_fine, self._gradients_fine
        if losses_fine is None:
            losses_fine = all_finite(_losses(outputs or {}), runner.device)
        if gradients_fine is None:
            self._window_fine = both(losses_fine, self._window_fine)
            gradients_fine = losses_fine
        if self._buffers:
            fine = losses_fine & gradients_fine
            for kept in self._buffers:
                kept.restore_unless(fine)
        self._unread.append((runner.iter + 1, losses_fine, gradients_fine))
        if self.every_n_train_iters(runner, self.interval):
            self._report(runner)

    def after_train(self, runner: Runner) -> None:
        self._report(runner)

    def after_run(self, runner: Runner) -> None:
        self._guard.release()

    def state_dict(self) -> dict[str, Any]:
        self._read()
        return {
            "num_skipped": self.num_skipped,
            "found": [list(found) for found in self._found],
            "window_fine": self._window_fine,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.num_skipped = state["num_skipped"]
        self._found = [(iteration, what) for iteration, what in state["found"]]
        self._window_fine = state["window_fine"]

    def _read(self) -> None:
        """Bring what the device has found in the last iterations to the host, in one copy."""
        if not self._unread:
            return
        iterations, losses, gradients = zip(*self._unread, strict=True)
        flags = agreed(torch.stack(losses + gradients)).float().unbind()
        fine = self._hub.to_host(flags)
        for iteration, losses_fine, gradients_fine in zip(
            iterations, fine[: len(losses)], fine[len(losses) :], strict=True
        ):
            if not (losses_fine and gradients_fine):
                self._found.append((iteration, "gradients" if losses_fine else "loss"))
                self.num_skipped += 1
        self._unread = []

    def _report(self, runner: Runner) -> None:
        self._read()
        found, self._found = self._found, []
        if not found:
            return
        where = ", ".join(f"{iteration} ({what})" for iteration, what in found[:_SHOWN])
        more = f" and {len(found) - _SHOWN} more" if len(found) > _SHOWN else ""
        message = f"loss or gradients were not finite at iteration {where}{more}"
        if self.action == "raise":
            paths = map(config_path, runner.optim_wrapper.optimizers)
            raise NotFiniteError(
                f"{message}; the weights are as before. Try a lower "
                f"{' or '.join(f'{path}.lr' for path in paths)}, "
                "hooks.optimizer.grad_clip.max_norm=1, trainer.precision=fp32, or "
                "hooks.check_invalid_loss.action=skip to leave such batches out"
            )
        runner.logger.warning("%s; no such step was taken", message)
        if self.action == "stop":
            runner.state.stop(message)


def _losses(outputs: Mapping[str, Any]) -> list[Tensor]:
    """The scalar tensors that are called so; a tensor of one element is made a scalar."""
    named = [v for k, v in outputs.items() if "loss" in k and isinstance(v, Tensor)]
    scalars = [v for v in named if v.numel() == 1 and v.is_floating_point()]
    return [value.detach().reshape(()) for value in scalars]

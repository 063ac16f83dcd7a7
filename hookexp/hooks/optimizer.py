"""Backward and the optimizer step: how a model is optimised is a hook like any other.

python -m hookexp hooks/optimizer=accumulate hooks.optimizer.cumulative_iters=4
python -m hookexp 'hooks.optimizer.cumulative_iters=[[0,1],[500,4]]'
python -m hookexp hooks.optimizer.grad_clip.max_norm=1.0
python -m hookexp hooks=-optimizer              # for a task that steps by itself: trains = True
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hookexp.hook import Batch, Hook, Priority
from hookexp.optim.capturable import refuse_kept_gradients
from hookexp.optim.windows import Windows
from hookexp.optim.wrapper import checked_clip
from hookexp.runner import Runner
from hookexp.task import loss_of


class OptimizerHook(Hook):
    """Loss / window, backward, unscale, clip, step, zero_grad.

    Args:
        grad_clip: `{max_norm, norm_type}` or `{clip_value}`, the others null; null: no clipping.
        cumulative_iters: iterations of an accumulation window, or `[[from_iter, n], ...]` to
            change it as the run goes on (Smith et al. 2018, "Don't decay the learning rate,
            increase the batch size", arXiv:1711.00489). Windows are aligned to the iteration of
            the run and go on over the ends of epochs; the last one of a run, or before a change,
            may be shorter, and is scaled by what it holds.
        loss_scale: `dynamic`, or a fixed number; used exactly when trainer.precision is fp16.
        detect_anomalous_params: name the parameters that took no part in the loss.
        set_to_none: free gradients after a step instead of zeroing them.
    """

    priority = Priority.HIGH
    trains = True

    def __init__(
        self,
        grad_clip: dict[str, Any] | None = None,
        cumulative_iters: int | list[list[int]] = 1,
        loss_scale: str | float = "dynamic",
        detect_anomalous_params: bool = False,
        set_to_none: bool = True,
    ) -> None:
        is_scale = isinstance(loss_scale, (int, float)) and loss_scale > 0
        if loss_scale != "dynamic" and not is_scale:
            raise ValueError(f"loss_scale={loss_scale}: use 'dynamic' or a number above 0")
        self.grad_clip = checked_clip(grad_clip or {})
        self.cumulative_iters = cumulative_iters
        self._windows = Windows(cumulative_iters)
        self.loss_scale = loss_scale
        self.detect_anomalous_params = detect_anomalous_params
        self.set_to_none = set_to_none
        self._reported: set[str] = set()

    def before_run(self, runner: Runner) -> None:
        wrapper = runner.optim_wrapper
        wrapper.set_clipping(self.grad_clip)
        wrapper.set_to_none = self.set_to_none
        wrapper.windows = self._windows = Windows(self.cumulative_iters)
        self._steps_always = self._windows.longest == 1
        if not self._steps_always:
            refuse_kept_gradients(runner, f"cumulative_iters={self.cumulative_iters}")
        if not self.set_to_none:
            refuse_kept_gradients(runner, "set_to_none=false")
        if not isinstance(self.loss_scale, str):
            wrapper.fix_loss_scale(self.loss_scale)

    def before_train(self, runner: Runner) -> None:
        has_batch_norm = any(isinstance(m, _BatchNorm) for m in runner.model.modules())
        if self._windows.longest > 1 and has_batch_norm:
            runner.logger.warning(
                "hooks.optimizer.cumulative_iters=%s: the model has batch norm, whose statistics "
                "are still those of single batches",
                self.cumulative_iters,
            )

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        model = runner.model
        if isinstance(model, nn.parallel.DistributedDataParallel):
            # Read by DDP in the forward pass: ranks synchronise only where a step follows.
            model.require_backward_grad_sync = self._is_end_of_window(runner)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        loss = loss_of(outputs)
        if self.detect_anomalous_params:
            self._report_unused(runner, loss)
        if self._steps_always:
            runner.optim_wrapper.backward(loss)
            runner.optimizer_step()
            return
        first, end = self._windows.bounds(runner.iter, runner.max_iters)
        runner.optim_wrapper.backward(loss, end - first)
        if runner.iter + 1 == end:
            runner.optimizer_step()

    def _is_end_of_window(self, runner: Runner) -> bool:
        return runner.iter + 1 == self._windows.bounds(runner.iter, runner.max_iters)[1]

    def _report_unused(self, runner: Runner, loss: Tensor) -> None:
        used = _parameters_in_graph(loss)
        unused = {
            name
            for name, p in runner.model.named_parameters()
            if p.requires_grad and id(p) not in used
        }
        if unused - self._reported:
            runner.logger.warning(
                "parameters that took no part in the loss: %s",
                ", ".join(sorted(unused - self._reported)),
            )
            self._reported |= unused


def _parameters_in_graph(loss: Tensor) -> set[int]:
    """Ids of the leaf tensors that a loss was computed from."""
    seen: set[Any] = set()
    pending: list[Any] = [loss.grad_fn]
    leaves = set()
    while pending:
        node = pending.pop()
        if node is None or node in seen:
            continue
        seen.add(node)
        if hasattr(node, "variable"):
            leaves.add(id(node.variable))
        pending.extend(parent for parent, _ in node.next_functions)
    return leaves

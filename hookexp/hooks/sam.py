"""Sharpness-aware minimisation: the gradient is taken where the loss nearby is worst.

python -m hookexp hooks/optimizer=sam hooks.optimizer.rho=0.1
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hookexp import dist
from hookexp.hook import Batch, Hook, Priority
from hookexp.optim.capturable import refuse_kept_gradients
from hookexp.optim.wrapper import checked_clip
from hookexp.runner import Runner
from hookexp.task import loss_of


class SamHook(Hook):
    """Steps with the gradient at `w + e(w)`, the worst point within `rho` to first order.

        e(w) = rho * g / ||g||                            (Foret et al. 2021, arXiv:2010.01412)
        e(w) = rho * w^2 g / || |w| g ||    adaptive      (Kwon et al. 2021, ASAM, arXiv:2102.11600)

    Flat minima tend to generalise better; the price is a second forward and backward pass in each
    iteration, on the same batch (dropout draws anew). Batch norm keeps the statistics of the first.
    The loss that is logged is that of the weights as they are. With several ranks each takes its
    own way up, from the gradient of its own batch, as in the paper; the second is synchronised.

    It takes the place of the optimizer hook: clipping, the mount points around the step and the
    scaling of fp16 are the same, accumulation there is none.

    Args:
        rho: how far away the worst point is looked for; for `adaptive`, about ten times as much.
        adaptive: measure the distance relative to the size of each weight.
        grad_clip: `{max_norm, norm_type}` or `{clip_value}`, of the gradient that is stepped with.
        set_to_none: free gradients after a step instead of zeroing them.
        cumulative_iters: 1, as both gradients of a step are of one batch; no other number is taken.
    """

    priority = Priority.HIGH
    trains = True

    def __init__(
        self,
        rho: float = 0.05,
        adaptive: bool = False,
        grad_clip: dict[str, Any] | None = None,
        set_to_none: bool = True,
        cumulative_iters: int = 1,
    ) -> None:
        if not rho > 0:
            raise ValueError(f"rho={rho}: use a number above 0")
        if cumulative_iters != 1:
            raise ValueError(
                f"cumulative_iters={cumulative_iters}: sam takes both gradients of a step from one "
                "batch and cannot accumulate; use 1 and a larger data.batch_size, or "
                "hooks/optimizer=accumulate without sam"
            )
        self.cumulative_iters = cumulative_iters
        self.rho = rho
        self.adaptive = adaptive
        self.grad_clip = checked_clip(grad_clip or {})
        self.set_to_none = set_to_none
        self._statistics: list[Tensor] = []

    def before_run(self, runner: Runner) -> None:
        runner.optim_wrapper.set_clipping(self.grad_clip)
        runner.optim_wrapper.set_to_none = self.set_to_none
        if not self.set_to_none:
            refuse_kept_gradients(runner, "set_to_none=false")

    def before_train(self, runner: Runner) -> None:
        norms = (m for m in runner.model.modules() if isinstance(m, _BatchNorm))
        self._statistics = [buffer for norm in norms for buffer in norm.buffers()]

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        _synchronise(runner, False)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        wrapper = runner.optim_wrapper
        wrapper.backward(loss_of(outputs))
        weights = _learning(runner)
        statistics = [s.clone() for s in self._statistics]
        before = [w.detach().clone() for w in weights]
        try:
            with torch.no_grad():
                torch._foreach_add_(weights, self._ascent(weights))
            wrapper.zero_grad()
            _synchronise(runner, True)
            wrapper.backward(loss_of(runner.forward_train(data_batch)))
        finally:
            # Also after an error, or a checkpoint of it would hold the worst point.
            with torch.no_grad():
                torch._foreach_copy_(weights, before)
                if statistics:
                    torch._foreach_copy_(self._statistics, statistics)
        runner.optimizer_step()

    def _ascent(self, weights: list[Tensor]) -> list[Tensor]:
        """e(w), whose length does not depend on the scale of the loss.

        What fp16 could not represent makes it NaN, and with it the second gradient: the scaler
        skips that step as any other.
        """
        direction = [w.grad for w in weights if w.grad is not None]
        if not self.adaptive:
            return self._scaled(direction)
        sizes = [w.detach().abs() for w in weights]
        return list(
            torch._foreach_mul(self._scaled(list(torch._foreach_mul(direction, sizes))), sizes)
        )

    def _scaled(self, direction: list[Tensor]) -> list[Tensor]:
        """All tensors together to the length rho."""
        norm = torch.stack(torch._foreach_norm(direction)).norm()
        return list(torch._foreach_mul(direction, self.rho / (norm + 1e-12)))


def _learning(runner: Runner) -> list[Tensor]:
    """The weights that the step will move; with DDP frozen ones have gradients until then."""
    parameters = [p for g in runner.optim_wrapper.param_groups for p in g["params"]]
    frozen = runner.message_hub.get_info("frozen_params")
    if frozen:
        named = dist.unwrap(runner.model).named_parameters()
        apart = {id(p) for name, p in named if name in frozen}
        parameters = [p for p in parameters if id(p) not in apart]
    return [p for p in parameters if p.grad is not None]


def _synchronise(runner: Runner, with_the_other_ranks: bool) -> None:
    if isinstance(runner.model, nn.parallel.DistributedDataParallel):
        runner.model.require_backward_grad_sync = with_the_other_ranks

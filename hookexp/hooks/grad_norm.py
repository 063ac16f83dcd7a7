"""How large the gradients are, of all parameters and of each layer, before they are clipped.

python -m hookexp hooks=+grad_norm
python -m hookexp hooks=+grad_norm/layers       # each layer too
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hookexp import dist
from hookexp.hook import Hook, Priority
from hookexp.numeric import require_whole
from hookexp.runner import Runner


class GradNormHook(Hook):
    """Norms that grow or vanish tell of trouble before the loss does, and layers tell where.

    `train/grad_norm` is the norm over all parameters, `train/grad_norm/<module>` that over the
    parameters which belong to one module. They stay on the device. Clipping by norm logs
    `train/grad_norm` at every step by itself; then this hook leaves that one alone. Where a task
    steps several optimizers, the norms are those of all gradients there are at the step.

    Args:
        interval: optimizer steps between two measurements; a number in between is the last one.
        per_layer: also the norm of each module with parameters of its own.
        norm_type: 2 for the Euclidean norm, 1, or infinity (`.inf` in yaml), the largest value.

    Raises:
        ValueError: for an interval below 1 or a norm_type that is not above 0.
    """

    priority = Priority.NORMAL

    def __init__(self, interval: int = 10, per_layer: bool = False, norm_type: float = 2.0) -> None:
        require_whole("interval", interval, of="steps")
        if not norm_type > 0:
            raise ValueError(f"norm_type={norm_type}: use a number above 0, or .inf")
        self.interval = interval
        self.per_layer = per_layer
        self.norm_type = norm_type
        self._layers: dict[str, list[nn.Parameter]] = {}

    def before_train(self, runner: Runner) -> None:
        self._layers = _parameters_by_module(dist.unwrap(runner.model))

    @torch.no_grad()
    def before_optim_step(self, runner: Runner) -> None:
        if (runner.state.optim_steps + 1) % self.interval != 0:
            return
        gradients = {
            layer: [p.grad for p in parameters if p.grad is not None]
            for layer, parameters in self._layers.items()
        }
        present = {layer: grads for layer, grads in gradients.items() if grads}
        if not present:
            return
        by_layer = self._norms_of(present)
        is_logged_by_clipping = runner.optim_wrapper.max_norm is not None
        if not is_logged_by_clipping:
            total = torch.linalg.vector_norm(torch.stack(by_layer), self.norm_type)
            runner.message_hub.replace_scalar("train/grad_norm", total)
        if self.per_layer:
            for layer, norm in zip(present, by_layer, strict=True):
                runner.message_hub.replace_scalar(f"train/grad_norm/{layer}", norm)

    def _norms_of(self, gradients: dict[str, list[Tensor]]) -> list[Tensor]:
        """One norm for each layer: a norm of norms is the norm of all."""
        flat = [_dense_values(g) for grads in gradients.values() for g in grads]
        norms = iter(torch._foreach_norm(flat, self.norm_type))
        stacked = [torch.stack([next(norms) for _ in grads]) for grads in gradients.values()]
        return list(torch._foreach_norm(stacked, self.norm_type))


def _parameters_by_module(model: nn.Module) -> dict[str, list[nn.Parameter]]:
    layers: dict[str, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.numel() > 0:
            layers.setdefault(name.rpartition(".")[0] or "model", []).append(parameter)
    return layers


def _dense_values(gradient: Tensor) -> Tensor:
    return gradient.coalesce().values() if gradient.is_sparse else gradient

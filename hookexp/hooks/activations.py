"""What goes through the layers of a model: mean, spread, dead and broken values.

python -m hookexp hooks=+activations 'hooks.activations.modules=[stem.*, head]'
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from hookexp import dist
from hookexp.errors import ConfigError
from hookexp.hook import Batch, Hook, Priority
from hookexp.numeric import require_whole
from hookexp.runner import Runner


class ActivationsHook(Hook):
    """A layer that saturates, dies or overflows shows in its outputs long before in the loss.

    For each named module `mean`, `std`, `zeros` and `nonfinite` (shares between 0 and 1) of its
    output go to `train/activations/<module>/...`, and those of the gradient with respect to it to
    `train/activation_gradients/<module>/...`. They stay on the device. Of an output with several
    tensors the first counts, and of several calls in one iteration too: the second pass of `sam` is
    not one of the weights as they are.

    PyTorch's hooks are on the modules only in the iterations that are measured. Gradients are
    taken by a hook on the output, not by a full backward hook on the module: that one makes the
    output a view, which the in-place ReLU after many a layer refuses.

    Args:
        modules: patterns of module names, as `model.named_modules()` has them: `*` stands for any
            characters, dots too, and `?` for one.
        interval: iterations between two measurements.
        gradients: whether gradients are measured too.

    Raises:
        ValueError: for an interval below 1 or no pattern.
        ConfigError: for a pattern that is no module's, listing those there are; or if the model
            is compiled, since hooks that come and go would compile it again.
    """

    priority = Priority.NORMAL
    after = ("optimizer",)

    def __init__(
        self, modules: Sequence[str] = ("*",), interval: int = 100, gradients: bool = False
    ) -> None:
        require_whole("interval", interval, of="iterations")
        if isinstance(modules, str) or not modules:
            raise ValueError(f"modules={modules!r}: use a list of name patterns, such as [head.*]")
        self.modules = tuple(modules)
        self.interval = interval
        self.gradients = gradients
        self._chosen: dict[str, nn.Module] = {}
        self._handles: list[RemovableHandle] = []
        self._measured: dict[str, Tensor] = {}

    def before_run(self, runner: Runner) -> None:
        if runner.settings.compile:
            raise ConfigError(
                "hooks.activations: a compiled model cannot be measured; use trainer.compile=false"
            )
        named = {name: m for name, m in dist.unwrap(runner.model).named_modules() if name}
        for pattern in self.modules:
            if not any(fnmatchcase(name, pattern) for name in named):
                raise ConfigError(
                    f"hooks.activations.modules: {pattern!r} is the name of no module; "
                    f"there are: {', '.join(named) or 'none'}"
                )
        self._chosen = {
            name: module
            for name, module in named.items()
            if any(fnmatchcase(name, pattern) for pattern in self.modules)
        }

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        if self.every_n_train_iters(runner, self.interval):
            self._measured = {}
            for name, module in self._chosen.items():
                see = partial(self._see_output, name)
                self._handles.append(module.register_forward_hook(see))

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        if not self._handles:
            return
        self._remove_handles()
        for key, value in self._measured.items():
            runner.message_hub.replace_scalar(key, value)

    def after_run(self, runner: Runner) -> None:
        self._remove_handles()

    def _see_output(self, name: str, module: nn.Module, args: Any, output: Any) -> None:
        tensor, prefix = _first_tensor(output), f"train/activations/{name}"
        if tensor is None or f"{prefix}/mean" in self._measured:
            return
        self._measure(prefix, tensor)
        if self.gradients and tensor.requires_grad:
            measure = partial(self._measure, f"train/activation_gradients/{name}")
            self._handles.append(tensor.register_hook(measure))  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def _measure(self, prefix: str, tensor: Tensor) -> None:
        values = tensor.detach().float()
        std, mean = torch.std_mean(values, correction=0)
        self._measured[f"{prefix}/mean"] = mean
        self._measured[f"{prefix}/std"] = std
        self._measured[f"{prefix}/zeros"] = (values == 0).float().mean()
        self._measured[f"{prefix}/nonfinite"] = values.isfinite().logical_not().float().mean()

    def _remove_handles(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def _first_tensor(output: Any) -> Tensor | None:
    if isinstance(output, Tensor):
        return output if output.is_floating_point() and output.numel() > 0 else None
    parts = output.values() if isinstance(output, Mapping) else output
    if not isinstance(output, (Mapping, list, tuple)):
        return None
    return next((t for t in map(_first_tensor, parts) if t is not None), None)

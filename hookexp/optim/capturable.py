"""Which runs have a training step that a CUDA graph can hold, and what to change in the others."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from torch.optim import SGD

from hookexp.errors import ConfigError

if TYPE_CHECKING:
    from hookexp.runner import Runner

USE_DEFAULT = "use hooks/optimizer=default"


def refuse_what_no_graph_holds(runner: Runner) -> None:
    """Refuse a run whose step cannot be captured, or would be captured wrong.

    Raises:
        ConfigError: says what to change.
    """
    settings, wrapper = runner.settings, runner.optim_wrapper
    if runner.device.type != "cuda":
        raise refusal(
            f"trainer.device={settings.device} is the {runner.device.type.upper()} here, and CUDA "
            f"graphs need an NVIDIA GPU; {USE_DEFAULT}"
        )
    if runner.world_size > 1:
        raise refusal(f"captures the step of one process, and this run has {runner.world_size}")
    if settings.precision == "fp16":
        raise refusal(
            "trainer.precision=fp16 asks at each step whether the gradients are finite, which no "
            f"graph can; use trainer.precision=bf16, or {USE_DEFAULT}"
        )
    if settings.compiles_to_graphs:
        raise refusal(
            f"trainer.compile={settings.compile} makes CUDA graphs of its own; use "
            f"trainer.compile=true or =max-autotune-no-cudagraphs, or {USE_DEFAULT}"
        )
    if settings.activation_checkpointing:
        raise refusal(
            "trainer.activation_checkpointing saves the state of the random numbers, which cannot "
            f"be read in a capture; set it to [], or {USE_DEFAULT}"
        )
    if len(wrapper.optimizers) > 1:
        raise refusal(f"captures one optimizer, and the config has {', '.join(wrapper.optimizers)}")
    optimizer = wrapper.optimizer
    if isinstance(optimizer, SGD) and not optimizer.param_groups[0]["fused"]:
        raise refusal("SGD can be captured only when it is fused; use optimizer.fused=true")
    if not isinstance(optimizer, SGD) and "capturable" not in optimizer.param_groups[0]:
        raise refusal(
            f"{type(optimizer).__name__} cannot be captured (it has no `capturable`); use "
            f"optimizer=adamw, adam or sgd, or {USE_DEFAULT}"
        )
    for name, scheduler in runner.param_schedulers.schedulers.items():
        if scheduler.param_name != "lr":
            raise refusal(
                f"param_scheduler.{name} moves {scheduler.param_name}, which the graph keeps as it "
                f"was at the capture; schedule lr alone, or {USE_DEFAULT}"
            )
    refuse_listeners(runner)


def refuse_listeners(runner: Runner) -> None:
    """Refuse hooks that would look at gradients between backward and step.

    Raises:
        ConfigError: naming them.
    """
    listening = [e.name for e in runner.hooks.entries if "before_optim_step" in e.stages]
    if listening:
        words = "".join(f"-{name}" for name in listening)
        raise refusal(
            f"backward and step are one graph, with no before_optim_step between them, where "
            f"{', '.join(f'hooks.{name}' for name in listening)} would be called; "
            f"drop hooks={words}, or {USE_DEFAULT}"
        )


def refuse_kept_gradients(runner: Runner, setting: str) -> None:
    """Refuse what keeps gradients until the next backward pass, where that is a graph of torch's.

    Such a graph writes its gradients to the same memory each time, and torch (2.13) takes that for
    the memory of the parameters' gradients: they would be overwritten (pytorch issue 169545).

    Raises:
        ConfigError: naming the setting of the optimizer hook.
    """
    settings = runner.settings
    if settings.compiles_to_graphs and runner.device.type == "cuda":
        raise ConfigError(
            f"hooks.optimizer.{setting}: keeps gradients, which the CUDA graphs of "
            f"trainer.compile={settings.compile} overwrite in each backward pass; use "
            "trainer.compile=true or =max-autotune-no-cudagraphs"
        )


def make_capturable(runner: Runner) -> None:
    """Keep on the device what the optimizer counts, and the learning rates that schedules fill."""
    for group in runner.optim_wrapper.param_groups:
        if "capturable" in group:
            group["capturable"] = True
        lr = group["lr"]
        if not isinstance(lr, Tensor) or lr.device != runner.device:
            group["lr"] = torch.tensor(float(lr), dtype=torch.float32, device=runner.device)


def refusal(text: str) -> ConfigError:
    """An error of the optimizer hook whose step cannot be captured."""
    return ConfigError(f"hooks.optimizer (GraphedOptimizerHook): {text}")

"""From the config group `model` to a model on its device, and to the step that trains it."""

from __future__ import annotations

import inspect
import logging
import os
from collections.abc import Callable, Mapping
from itertools import chain
from typing import Any

import torch
from omegaconf import DictConfig
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.nn.parameter import is_lazy

from hookexp import dist
from hookexp.activation_checkpointing import recompute_in_backward
from hookexp.compose.instantiate import instantiate
from hookexp.compose.wording import listed, nearest, on_one_line
from hookexp.device import map_tensors
from hookexp.errors import ConfigError, kind_of
from hookexp.settings import TrainerSettings
from hookexp.task import Task

logger = logging.getLogger("hookexp")

_NOT_OF_A_CONFIG = (
    *("module", "device_ids", "output_device", "dim", "process_group", "device_mesh"),
    *("delay_all_reduce_named_params", "param_to_hook_all_reduce", "mixed_precision"),
)
"""Arguments of DistributedDataParallel that are objects, or ours to say."""


def build_model(cfg: DictConfig, settings: TrainerSettings, device: torch.device) -> nn.Module:
    """The model, in its memory layout and on its device.

    Raises:
        ConfigError: for a target that makes no module, weights that have no shape yet, and modules
            to recompute that it lacks.
    """
    model = instantiate(cfg.model, "model")
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model._target_={cfg.model._target_}: makes {kind_of(model)}, "
            "which is no torch.nn.Module"
        )
    _refuse_lazy(model, str(cfg.model._target_))
    recompute_in_backward(model, settings.activation_checkpointing)
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(device)


def _refuse_lazy(model: nn.Module, target: str) -> None:
    """Weights get their shape from the first batch here, and an optimizer is given them before."""
    tensors = chain(model.named_parameters(), model.named_buffers())
    lazy = next((name for name, tensor in tensors if is_lazy(tensor)), None)
    if lazy is not None:
        where = lazy.rpartition(".")[0]
        raise ConfigError(
            f"model._target_={target}: {where or 'it'} is a "
            f"{type(model.get_submodule(where)).__name__}, whose weights have no shape before the "
            "first batch; run one through the model at the end of its constructor, or use the "
            "module that is not lazy"
        )


def across_ranks(model: nn.Module, settings: TrainerSettings, device: torch.device) -> nn.Module:
    """The model itself, or in a run of several ranks one that synchronises its gradients.

    Its buffers are rank 0's again at each step: a checkpoint holds those, so all ranks resume.

    Raises:
        ConfigError: for arguments that DistributedDataParallel does not take.
    """
    given = settings.ddp or {}
    _refuse_unknown(given, DistributedDataParallel, _NOT_OF_A_CONFIG, "ddp")
    if dist.world_size() == 1:
        return model
    options = {"device_ids": [device] if device.type == "cuda" else None, **given}
    # After its first step torch puts the gradients into other buckets, in which the sums of three
    # ranks or more come out in another order, and a resumed run begins with the first ones again.
    # With this it keeps those; two numbers have one sum.
    if settings.deterministic and dist.world_size() > 2:
        options.setdefault("find_unused_parameters", True)
    try:
        return DistributedDataParallel(model, **options)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"trainer.ddp={given}: {on_one_line(error)[:300]}") from error


def compiled_step(task: Task, settings: TrainerSettings) -> Callable[..., dict[str, Any]]:
    """The task's `train_step`, compiled if `trainer.compile` says so; nothing else ever is.

    Raises:
        ConfigError: for arguments that torch.compile does not take.
    """
    if settings.compile is False:
        return task.train_step
    options: dict[str, Any] = {}
    if isinstance(settings.compile, dict):
        options = settings.compile
    elif isinstance(settings.compile, str):
        options = {"mode": settings.compile}
    _refuse_unknown(options, torch.compile, ("model",), "compile")
    if settings.deterministic and settings.compile:
        # Else code for any size takes over once a second one came, such as that of a last batch:
        # which it was depends on what this process has seen.
        options = {"dynamic": False, **options}
    try:
        step = torch.compile(task.train_step, **options)
    except Exception as error:
        raise ConfigError(f"trainer.compile={settings.compile}: {on_one_line(error)}") from error
    logger.info(
        "trainer.compile: the first iterations compile and take long, a minute or more for a large "
        "model; so does the first batch of another shape%s",
        "" if settings.deterministic else "; trainer.deterministic=true makes a resume exact",
    )
    return _with_copied_results(step) if settings.compiles_to_graphs else step


def _with_copied_results(step: Callable[..., Any]) -> Callable[..., Any]:
    """A step whose results stay what they are.

    A CUDA graph writes those of the next step to the same memory, and hooks keep what they are
    given until somebody reads it.
    """

    def call(model: nn.Module, batch: Any) -> Any:
        return map_tensors(step(model, batch), Tensor.clone)

    return call


def _refuse_unknown(
    options: Mapping[str, Any], function: Callable[..., Any], ours: tuple[str, ...], setting: str
) -> None:
    """Refuse options of `trainer.<setting>` that are no arguments of what they are given to."""
    known = [
        argument for argument in inspect.signature(function).parameters if argument not in ours
    ]
    for key in options:
        if key not in known:
            raise ConfigError(
                f"trainer.{setting}.{key}: torch's {function.__name__} has no such argument; "
                f"it has: {listed(known)}{nearest(key, known)}"
            )


def set_numerics(settings: TrainerSettings) -> None:
    """Set torch's flags for the whole process: determinism, and TensorFloat-32 on a GPU."""
    if settings.deterministic:
        torch.use_deterministic_algorithms(True)
        # Without a workspace of fixed size cuBLAS may add up in another order, and torch refuses.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.backends.cudnn.benchmark = False
    if settings.tf32 is not None:
        # Of torch's two interfaces this is the one that torch 2.6 has too, and that torch.compile
        # can read: once matmul.fp32_precision is set, get_float32_matmul_precision raises.
        torch.set_float32_matmul_precision("high" if settings.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = settings.tf32

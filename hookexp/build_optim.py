"""From the config group `optimizer` to the optimizers of a run, with their parameter groups."""

from __future__ import annotations

import math
from typing import Any

import torch
from omegaconf import DictConfig, ListConfig, OmegaConf
from torch import nn
from torch.optim import Optimizer

from hookexp.build_data import plain
from hookexp.compose.instantiate import instantiate
from hookexp.compose.wording import listed
from hookexp.errors import ConfigError
from hookexp.optim.fused_sgd import fill_momentum
from hookexp.optim.param_groups import param_groups
from hookexp.optim.states import config_path
from hookexp.optim.wrapper import OptimWrapper
from hookexp.settings import TrainerSettings


def build_optim_wrapper(
    cfg: DictConfig, settings: TrainerSettings, device: torch.device, model: nn.Module
) -> OptimWrapper:
    """One optimizer, or several that are named after the parts of the model they train.

    Raises:
        ConfigError: for a model without parameters, a name that is no part of it, and what the
            optimizer refuses.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError(f"model._target_={cfg.model._target_}: has no parameter to train")
    nodes = {"default": cfg.optimizer}
    _refuse_one_and_several(cfg.optimizer)
    if "_target_" not in cfg.optimizer:
        nodes = {str(name): node for name, node in cfg.optimizer.items()}
    optimizers = {}
    for name, node in nodes.items():
        path = config_path(name)
        chosen = _parameters_of(model, parameters, name)
        options = node.copy()
        OmegaConf.set_struct(options, False)
        groups = options.pop("param_groups", None)
        if groups is not None:
            if not isinstance(groups, DictConfig):
                raise ConfigError(
                    f"{path}.param_groups={groups}: use null, or a mapping of no_decay, "
                    "layer_decay and rules"
                )
            chosen = _grouped(model, chosen, groups, options, path)
        _check_torchs_own(options, path)
        optimizers[name] = instantiate(options, path)(chosen)
        _refuse_infinities(optimizers[name], path)
        fill_momentum(optimizers[name])
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    return OptimWrapper(optimizers, scaler)


def _refuse_one_and_several(group: DictConfig) -> None:
    """An experiment's values are merged with the option that is on, and so are named optimizers."""
    named = [str(k) for k, v in group.items() if isinstance(v, DictConfig) and "_target_" in v]
    if named and "_target_" in group:
        raise ConfigError(
            f"optimizer: is one ({group._target_}), and {listed(named)} beside it; several stand "
            "alone in a file of the group, my_conf/optimizer/NAME.yaml, chosen with optimizer=NAME "
            "or, in an experiment, `override /optimizer: NAME`"
        )


def _check_torchs_own(options: DictConfig, path: str) -> None:
    """torch's optimizers compare and unpack what they are given before they look at its type."""
    if not str(options.get("_target_")).startswith("torch.optim."):
        return
    for key in ("lr", "momentum", "weight_decay"):
        value = options.get(key, 0.0)
        if isinstance(value, (bool, str, ListConfig, type(None))):
            shown = "null" if value is None else value
            raise ConfigError(f"{path}.{key}={shown}: use a number, such as 0.01")
    betas = options.get("betas", ListConfig([0.9, 0.999]))
    is_list = isinstance(betas, ListConfig) and all(isinstance(b, (int, float)) for b in betas)
    if not is_list or len(betas) != 2:
        raise ConfigError(f"{path}.betas={betas}: use two numbers, such as [0.9, 0.999]")


def _refuse_infinities(optimizer: Optimizer, path: str) -> None:
    """1e400 is read as infinity, and torch would train with it."""
    for group in optimizer.param_groups:
        for key in ("lr", "momentum", "weight_decay"):
            value = group.get(key, 0.0)
            if isinstance(value, float) and not math.isfinite(value):
                raise ConfigError(f"{path}.{key}={value}: use a finite number")


def _parameters_of(model: nn.Module, parameters: list[nn.Parameter], name: str) -> Any:
    """All parameters, or those of the model's submodule an optimizer is named after."""
    if name == "default":
        return parameters
    part = getattr(model, name, None)
    if not isinstance(part, nn.Module):
        children = ", ".join(child for child, _ in model.named_children())
        raise ConfigError(
            f"optimizer.{name}: several optimizers are named after parts of the model, and it "
            f"has no part {name!r}; it has: {children}"
        )
    return [p for p in part.parameters() if p.requires_grad]


def _grouped(
    model: nn.Module,
    parameters: list[nn.Parameter],
    groups: DictConfig,
    options: DictConfig,
    path: str,
) -> list[dict[str, Any]]:
    """An optimizer's parameters in groups, as its `param_groups` says."""
    ids = {id(p) for p in parameters}
    names = [name for name, p in model.named_parameters() if id(p) in ids]
    settings = {k: v for k, v in plain(options, resolve=True).items() if not k.startswith("_")}
    return param_groups(model, names, plain(groups, resolve=True), settings, path)

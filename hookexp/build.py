"""From a composed config to finished objects, in the order in which they depend on each other.

What can be wrong without any data is checked first: settings, hooks, sinks, task, device. Below
this file there is no config any more, only objects.
"""

from __future__ import annotations

import logging
import random
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from hookexp import dist
from hookexp.build_data import build_loader, plain, whole_number
from hookexp.checkpoint.loading import path_to_load
from hookexp.checkpoint.snapshot import refuse_other_model
from hookexp.checkpoint.store import CheckpointStore, load_checkpoint
from hookexp.compose.instantiate import instantiate
from hookexp.compose.secrets import masked
from hookexp.compose.typed import words_of_an_evaluation
from hookexp.data.prefetch import Prefetcher
from hookexp.device import autocast, batch_placer, resolve_device
from hookexp.errors import ConfigError
from hookexp.hook import Mode
from hookexp.hook_list import HookList
from hookexp.optim.param_groups import param_groups
from hookexp.optim.param_schedulers import ParamSchedulers
from hookexp.optim.wrapper import OptimWrapper
from hookexp.parts import Parts
from hookexp.runner import Runner
from hookexp.seed import derive_seed, seed_everything
from hookexp.settings import TrainerSettings
from hookexp.sink_list import SinkList
from hookexp.summary import choose_objective
from hookexp.task import Task

_SPLITS: dict[str, tuple[Mode, ...]] = {
    "train": ("train", "val"),
    "val": ("val",),
    "test": ("test",),
}


def build_runner(cfg: DictConfig, work_dir: Path, splits: tuple[Mode, ...] | None = None) -> Runner:
    """Put a run together.

    Args:
        cfg: the composed config.
        work_dir: the run's folder, which exists.
        splits: the data sets to build; None for those that `cfg.mode` needs.

    Raises:
        ConfigError: for anything in the config that cannot work, naming its path.
    """
    dist.init()
    work_dir = Path(dist.broadcast(str(work_dir)))
    if dist.rank() > 0:
        logging.getLogger("hookexp").setLevel(logging.WARNING)
    settings = _build_settings(cfg)
    _check_paths(cfg)
    hooks = build_hooks(cfg)
    sinks = SinkList({name: instantiate(n, f"sinks.{name}") for name, n in _nodes(cfg, "sinks")})
    task = _build_task(cfg)
    schedulers = ParamSchedulers(
        {n: instantiate(node, f"param_scheduler.{n}") for n, node in _nodes(cfg, "param_scheduler")}
    )
    objective = _check_metrics(settings, hooks, schedulers, task)
    device = resolve_device(settings.device, dist.local_rank())
    _set_determinism(settings.deterministic)
    seed = dist.broadcast(
        random.SystemRandom().randrange(2**31) if cfg.seed is None else whole_number(cfg, "seed", 0)
    )
    seed_everything(seed)
    model = _build_model(cfg, settings, device)
    optim_wrapper = _build_optim_wrapper(cfg, settings, device, model)
    _check_weights(cfg, model)
    splits = splits or _SPLITS[cfg.mode]
    loaders = {split: build_loader(cfg.data, split, settings, device, seed) for split in splits}
    # Training begins with generators that do not depend on what building model and data drew.
    seed_everything(derive_seed(seed, 1 + dist.rank()))
    place = batch_placer(device, settings.channels_last)
    parts = Parts(
        settings=settings,
        work_dir=work_dir,
        experiment_name=str(cfg.name),
        seed=seed,
        device=device,
        hooks=hooks,
        sinks=sinks,
        task=task,
        model=_across_ranks(model, device),
        optim_wrapper=optim_wrapper,
        param_schedulers=schedulers,
        autocast=autocast(device, settings.precision),
        place=place,
        prefetch=Prefetcher(device, place) if device.type == "cuda" else iter,
        train_step=_compiled(task, settings),
        train_loader=loaders.get("train"),
        val_loader=loaders.get("val"),
        test_loader=loaders.get("test"),
        objective=objective,
        resume=cfg.resume,
        load_from=cfg.load_from,
        cfg=masked(plain(cfg)),
        words_of_an_evaluation=words_of_an_evaluation(),
    )
    return Runner(parts)


def build_hooks(cfg: DictConfig) -> HookList:
    """The hooks of a config in call order; nothing else is built for it."""
    hooks = HookList()
    for name, node in _nodes(cfg, "hooks"):
        path = f"hooks.{name}"
        options = node.copy()
        OmegaConf.set_struct(options, False)
        priority = options.pop("priority", None)
        hooks.register(instantiate(options, path), name, priority)
    hooks.check_method_names()
    hooks.check_contracts()
    return hooks


def _build_settings(cfg: DictConfig) -> TrainerSettings:
    values = plain(cfg.trainer, resolve=True)
    known = TrainerSettings.__dataclass_fields__
    for key in values:
        if key not in known:
            raise ConfigError(f"trainer.{key}: no such setting; there are: {', '.join(known)}")
    return TrainerSettings(**values).spelled_out()


def _check_paths(cfg: DictConfig) -> None:
    for key in ("resume", "load_from"):
        path = cfg[key]
        if path is not None and path != "auto" and not Path(path).expanduser().exists():
            raise ConfigError(f"{key}={path}: there is no such file or folder")
    if cfg.load_from == "auto":
        raise ConfigError("load_from=auto: only resume knows auto; give a file or a folder")
    if cfg.resume is not None and cfg.load_from is not None:
        raise ConfigError(
            f"resume={cfg.resume} and load_from={cfg.load_from}: give one; resume continues a run, "
            "load_from takes the weights alone"
        )


def _build_task(cfg: DictConfig) -> Task:
    task = instantiate(cfg.task, "task")
    if not isinstance(task, Task):
        raise ConfigError(
            f"task._target_={cfg.task._target_}: makes a {type(task).__name__}, "
            "which is no subclass of hookexp.Task"
        )
    return task


def _check_metrics(
    settings: TrainerSettings, hooks: HookList, schedulers: ParamSchedulers, task: Task
) -> Any:
    """Refuse metric names that the task does not have, before any data is loaded."""
    if task.metric_names:
        schedulers.check_metrics(task.metric_names)
        for entry in hooks.entries:
            if hasattr(entry.hook, "check_metrics"):
                try:
                    entry.hook.check_metrics(task.metric_names)
                except ValueError as error:
                    raise ConfigError(f"hooks.{entry.name}.{error}") from None
    return choose_objective(settings.objective, task.metric_names)


def _build_model(cfg: DictConfig, settings: TrainerSettings, device: torch.device) -> nn.Module:
    model = instantiate(cfg.model, "model")
    if not isinstance(model, nn.Module):
        raise ConfigError(
            f"model._target_={cfg.model._target_}: makes a {type(model).__name__}, "
            "which is no torch.nn.Module"
        )
    if settings.channels_last:
        model.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    return model.to(device)


def _check_weights(cfg: DictConfig, model: nn.Module) -> None:
    """Refuse a named checkpoint of another model before any data is loaded."""
    if cfg.resume == "auto":
        return
    path = path_to_load(cfg.resume, cfg.load_from, CheckpointStore(Path()))
    if path is not None:
        refuse_other_model(model, load_checkpoint(path, map_location="meta"), path)


def _build_optim_wrapper(
    cfg: DictConfig, settings: TrainerSettings, device: torch.device, model: nn.Module
) -> OptimWrapper:
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ConfigError(f"model._target_={cfg.model._target_}: has no parameter to train")
    nodes = {"default": cfg.optimizer}
    if "_target_" not in cfg.optimizer:
        nodes = {str(name): node for name, node in cfg.optimizer.items()}
    optimizers = {}
    for name, node in nodes.items():
        path = "optimizer" if name == "default" else f"optimizer.{name}"
        chosen = _parameters_of(model, parameters, name)
        options = node.copy()
        OmegaConf.set_struct(options, False)
        groups = options.pop("param_groups", None)
        if groups is not None:
            chosen = _grouped(model, chosen, groups, options, path)
        optimizers[name] = instantiate(options, path)(chosen)
    scaler = torch.amp.GradScaler(device.type, enabled=settings.precision == "fp16")
    return OptimWrapper(optimizers, scaler)


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


def _across_ranks(model: nn.Module, device: torch.device) -> nn.Module:
    if dist.world_size() == 1:
        return model
    return DistributedDataParallel(model, device_ids=[device] if device.type == "cuda" else None)


def _compiled(task: Task, settings: TrainerSettings) -> Any:
    if settings.compile is False:
        return task.train_step
    options = settings.compile if isinstance(settings.compile, dict) else {}
    return torch.compile(task.train_step, **options)


def _set_determinism(deterministic: bool) -> None:
    if deterministic:
        torch.use_deterministic_algorithms(True)
        torch.backends.cudnn.benchmark = False


def _nodes(cfg: DictConfig, group: str) -> list[tuple[str, DictConfig]]:
    """The named parts of a group that are not null; each has to be a mapping with `_target_`."""
    nodes = []
    for name, node in (cfg[group] or {}).items():
        if node is None:
            continue
        if not isinstance(node, DictConfig) or "_target_" not in node:
            raise ConfigError(
                f"{group}.{name}: has no _target_, so nothing can be made of it; "
                f"give it one, or add it as a group: {group}=+{name}"
            )
        nodes.append((str(name), node))
    return nodes

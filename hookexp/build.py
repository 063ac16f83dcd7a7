"""From a composed config to finished objects, in the order in which they depend on each other.

What can be wrong without any data is checked first: settings, hooks, sinks, task, device. Below
this file there is no config any more, only objects.
"""

from __future__ import annotations

import difflib
import logging
import random
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from torch import nn

from hookexp import dist
from hookexp.build_data import build_loaders, plain
from hookexp.build_doubts import tell_doubts
from hookexp.build_model import across_ranks, build_model, compiled_step, set_numerics
from hookexp.build_optim import build_optim_wrapper
from hookexp.checkpoint.loading import Start, read_start
from hookexp.checkpoint.manifest import check_ignored_names
from hookexp.checkpoint.store import CheckpointStore
from hookexp.checkpoint.weights import refuse_other_model
from hookexp.compat.singletons import offer
from hookexp.compose.checks import check_paths, nodes_of, settings_of, whole_number
from hookexp.compose.instantiate import instantiate
from hookexp.compose.secrets import masked
from hookexp.compose.typed import words_of_a_training, words_of_an_evaluation
from hookexp.data.prefetch import Prefetcher
from hookexp.device import autocast, batch_placer, make_current, resolve_device
from hookexp.errors import ConfigError, kind_of
from hookexp.hook import MOUNT_POINTS, Mode
from hookexp.hook_list import HookList
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.optim.param_schedulers import ParamSchedulers
from hookexp.parts import Parts
from hookexp.runner import Runner
from hookexp.seed import derive_seed, seed_everything
from hookexp.settings import TrainerSettings
from hookexp.sink import Sink
from hookexp.sink_list import SinkList
from hookexp.summary import Summary, choose_objective
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
    work_dir = _join_ranks(work_dir)
    settings = settings_of(cfg)
    check_paths(cfg)
    check_ignored_names(cfg.resume_ignore)
    start = _read_resumed(cfg, work_dir)
    seed = dist.broadcast(_seed(cfg, start))
    seed_everything(seed)
    hooks = build_hooks(cfg)
    sinks = _build_sinks(cfg)
    task = _build_task(cfg)
    schedulers = _build_schedulers(cfg)
    objective = _check_metrics(settings, hooks, schedulers, task)
    splits = splits or _SPLITS[cfg.mode]
    if "train" in splits:
        tell_doubts(hooks, schedulers, task, validates=cfg.data.get("val") is not None)
    device = resolve_device(settings.device, dist.local_rank())
    make_current(device)
    set_numerics(settings)
    seed_everything(seed)  # The weights do not depend on what hooks and the task have drawn.
    model = build_model(cfg, settings, device)
    optim_wrapper = build_optim_wrapper(cfg, settings, device, model)
    start = start or _read_loaded(cfg, model)
    _refuse_other_start(start, model, hooks, task)
    loaders = build_loaders(cfg.data, splits, settings, device, seed)
    # Training begins with generators that do not depend on what building model and data drew.
    seed_everything(derive_seed(seed, 1 + dist.rank()))
    place = batch_placer(device, settings.channels_last)
    parts = Parts(
        settings=settings,
        work_dir=work_dir,
        seed=seed,
        device=device,
        hooks=hooks,
        sinks=sinks,
        task=task,
        model=across_ranks(model, settings, device),
        optim_wrapper=optim_wrapper,
        param_schedulers=schedulers,
        autocast=autocast(device, settings.precision),
        place=place,
        prefetch=Prefetcher(device, place) if device.type == "cuda" else iter,
        train_step=compiled_step(task, settings),
        train_loader=loaders.get("train"),
        val_loader=loaders.get("val"),
        test_loader=loaders.get("test"),
        objective=objective,
        start=start,
        **_as_given(cfg),
    )
    return Runner(parts)


def _join_ranks(work_dir: Path) -> Path:
    """Become one of the run's processes; returns the folder of them all."""
    dist.init()
    if dist.rank() > 0:
        logging.getLogger("hookexp").setLevel(logging.WARNING)
    return Path(dist.broadcast(str(work_dir)))


def _as_given(cfg: DictConfig) -> dict[str, Any]:
    """The parts of a run that are values of the config, or what was typed for it."""
    return {
        "experiment_name": str(cfg.name),
        "resume": cfg.resume,
        "load_from": cfg.load_from,
        "load_from_trusted": cfg.load_from_trusted,
        "resume_ignore": tuple(cfg.resume_ignore),
        "cfg": masked(plain(cfg)),
        "words_of_a_training": words_of_a_training(),
        "words_of_an_evaluation": words_of_an_evaluation(cfg),
    }


def summary_of_finished_run(cfg: DictConfig, work_dir: Path) -> Summary | None:
    """What is left to say where `resume=auto` meets a run that is over; None if there is more."""
    if cfg.mode != "train" or cfg.resume != "auto":
        return None
    dist.init()
    settings = settings_of(cfg)
    budget = settings.max_epochs, settings.max_iters
    return dist.broadcast(Summary.of_run_that_is_over(work_dir, *budget))  # type: ignore[no-any-return]


def build_hooks(cfg: DictConfig) -> HookList:
    """The hooks of a config in call order; nothing else is built for it."""
    hooks = HookList()
    offer(str(node.get("_target_", "")) for _, node in nodes_of(cfg, "hooks"))
    for name, node in nodes_of(cfg, "hooks"):
        path = f"hooks.{name}"
        options = node.copy()
        OmegaConf.set_struct(options, False)
        priority = options.pop("priority", None)
        hooks.register(instantiate(options, path), name, priority)
    hooks.check_method_names()
    hooks.check_contracts()
    for name in hooks.that_are_never_called() if dist.rank() == 0 else ():
        logging.getLogger("hookexp").warning(
            "hooks.%s: %s has no method that is called like a mount point, so nothing of it is "
            "ever called; mount points: %s",
            *(name, type(hooks[name]).__name__, ", ".join(MOUNT_POINTS)),
        )
    return hooks


def _build_schedulers(cfg: DictConfig) -> ParamSchedulers:
    return ParamSchedulers(
        {
            name: instantiate(node, f"param_scheduler.{name}")
            for name, node in nodes_of(cfg, "param_scheduler")
        }
    )


def _build_sinks(cfg: DictConfig) -> SinkList:
    sinks = {name: instantiate(node, f"sinks.{name}") for name, node in nodes_of(cfg, "sinks")}
    for name, sink in sinks.items():
        if not isinstance(sink, Sink):
            raise ConfigError(
                f"sinks.{name}: {type(sink).__name__} is no sink; derive it from hookexp.Sink"
            )
        _refuse_near_misses(name, sink)
    return SinkList(sinks)


def _refuse_near_misses(name: str, sink: Sink) -> None:
    """What a sink takes is in the names of its methods: one misspelt would take nothing."""
    kind = type(sink)
    own = (cls for cls in kind.__mro__ if issubclass(cls, Sink) and cls is not Sink)
    for method in (method for cls in own for method in vars(cls) if not hasattr(Sink, method)):
        nearest = difflib.get_close_matches(method, dir(Sink), n=1, cutoff=0.88)
        is_left_out = bool(nearest) and getattr(kind, nearest[0]) is getattr(Sink, nearest[0])
        if is_left_out and method[0] != "_":
            raise ConfigError(
                f"sinks.{name}: {kind.__name__}.{method} would never be called; did you mean "
                f"{nearest[0]}? (A helper of your own: begin its name with an underscore)"
            )


def _build_task(cfg: DictConfig) -> Task:
    task = instantiate(cfg.task, "task")
    if not isinstance(task, Task):
        raise ConfigError(
            f"task._target_={cfg.task._target_}: makes {kind_of(task)}, "
            "which is no subclass of hookexp.Task"
        )
    return task


def _check_metrics(
    settings: TrainerSettings, hooks: HookList, schedulers: ParamSchedulers, task: Task
) -> Any:
    """Refuse metric names that the task does not have, before any data is loaded."""
    rules: dict[str, str] = {}
    if task.metric_names:
        schedulers.check_metrics(task.metric_names)
        for entry in hooks.entries:
            if hasattr(entry.hook, "check_metrics"):
                try:
                    entry.hook.check_metrics(task.metric_names)
                except ValueError as error:
                    raise ConfigError(f"hooks.{entry.name}.{error}") from None
            if isinstance(entry.hook, CheckpointHook):
                rules |= entry.hook.best.rules(task.metric_names)
    return choose_objective(settings.objective, task.metric_names, rules)


def _read_resumed(cfg: DictConfig, work_dir: Path) -> Start | None:
    """Read the checkpoint that a run continues from once, before anything else is built."""
    if cfg.resume is None:
        return None
    return read_start(cfg.resume, None, CheckpointStore(work_dir), nn.Module())


def _read_loaded(cfg: DictConfig, model: nn.Module) -> Start | None:
    """Read the weights to begin with, before any data is loaded."""
    if cfg.resume is not None:
        return None
    own = CheckpointStore(Path())
    return read_start(None, cfg.load_from, own, model, cfg.load_from_trusted)


def _refuse_other_start(start: Start | None, model: nn.Module, hooks: HookList, task: Task) -> None:
    """Before any data is loaded, where nobody may still change the model or what the file holds.

    Weights may be renamed when it is loaded, and added in `before_run` and in a task's `setup`.
    """
    if start is None or any("after_load_checkpoint" in entry.stages for entry in hooks.entries):
        return
    openings = [type(e.hook) for e in hooks.entries if "before_run" in e.stages]
    openings += [owner for owner in type(task).__mro__ if "setup" in vars(owner)][:1]
    if all(owner.__module__.startswith("hookexp.") for owner in openings):
        refuse_other_model(model, start.checkpoint, start.path)


def _seed(cfg: DictConfig, start: Start | None) -> int:
    """The config's; where that leaves it open the one that a continued run has drawn, or a new."""
    if cfg.seed is not None:
        return whole_number(cfg, "seed", 0)
    drawn = None if start is None else start.checkpoint.get("meta", {}).get("seed")
    return random.SystemRandom().randrange(2**31) if drawn is None else int(drawn)

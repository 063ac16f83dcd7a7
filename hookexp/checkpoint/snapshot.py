"""What a checkpoint holds, and how it goes back into a run.

meta              versions, counters, seed, time: what depends on clock or machine
message_hub       windows of logged scalars (times among them)
state_dict        the model's weights
beside            what has changed in the task, its losses, plain attributes of the model's modules,
                  and buffers that are not persistent
frozen            which parameters do not learn and which modules are in evaluation mode, now and
                  when training began
buffers           those that ranks have different values of
optimizer         optimizers, gradient scaler, gradients of an open window
param_schedulers  what is not a function of the position
scheduled         what they have set, and what the parameter groups hold instead
loop              counters and what comes next
sampler           what a position in an epoch counts: batch size, seed, ...
stream            where ready batches of the user's own stand, on each rank
val_stream        the same of those to validate on, between two validations
objective         the best value of the run's metric
hooks             each hook's state under its config name
rng               the random number generators of each rank, also of model, task and hooks
ema_state_dict    the raw weights, where a hook has put averages into state_dict
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hookexp import dist
from hookexp.checkpoint import rank_buffers
from hookexp.checkpoint.arithmetic import arithmetic_of
from hookexp.checkpoint.manifest import draws_seed, sampler_of
from hookexp.checkpoint.plain import ensure_plain
from hookexp.data.sampler import BatchSampler
from hookexp.data.stream import BatchStream
from hookexp.device import map_tensors
from hookexp.errors import ConfigError, add_note

if TYPE_CHECKING:
    from hookexp.listeners import HookEntry
    from hookexp.runner import Runner
    from hookexp.state import SaveRequest


def collect(runner: Runner, request: SaveRequest) -> dict[str, Any]:
    """What the next step depends on, as tensors and plain types; `collect_of_hooks` adds to it."""
    meta = {
        "epoch": runner.epoch,
        "iter": runner.iter,
        "seed": runner.seed,
        "world_size": runner.world_size,
        "experiment_name": runner.experiment_name,
        "torch_version": str(torch.__version__),
        "arithmetic": arithmetic_of(runner.device),
        "orders": runner.checkpointer.orders,
        "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
        "sinks": runner.sinks.state_dict(),
    }
    weights = dist.unwrap(runner.model).state_dict()
    if request.weights_alone:
        return {"meta": meta, "state_dict": weights}
    checkpoint: dict[str, Any] = {
        "meta": meta,
        "state_dict": weights,
        "beside": runner.checkpointer.beside.state_dict(),
        "frozen": runner.checkpointer.frozen.state_dict(),
        "loop": {**runner.state.state_dict(), "budget": _budget(runner)},
        "sampler": sampler_of(runner),
        "objective": None if runner.objective is None else asdict(runner.objective),
    }
    if runner.world_size > 1:
        checkpoint["buffers"] = rank_buffers.state_of(runner.model)
    if isinstance(runner.train_dataloader, BatchStream):
        stream = runner.train_dataloader.state_dict(runner.state.batch_in_epoch)
        checkpoint["stream"] = dist.gather(stream)
    if isinstance(runner.val_dataloader, BatchStream):
        checkpoint["val_stream"] = dist.gather(runner.val_dataloader.state_dict(0))
    if request.with_optimizer:
        checkpoint["optimizer"] = _optimizer_state(runner)
    if request.with_param_schedulers:
        checkpoint["param_schedulers"] = runner.param_schedulers.state_dict()
        checkpoint["scheduled"] = runner.param_schedulers.values()
    return checkpoint


def collect_of_hooks(runner: Runner, request: SaveRequest, checkpoint: dict[str, Any]) -> None:
    """Add what hooks may still change when they are told of the save: it counts as it is then."""
    if request.weights_alone:
        return
    checkpoint["message_hub"] = runner.message_hub.state_dict()
    checkpoint["hooks"] = {
        entry.name: _state_of(entry)
        for entry in runner.hooks.entries
        if hasattr(entry.hook, "state_dict")
    }
    checkpoint["rng"] = dist.gather(runner.rng_state())


def _state_of(entry: HookEntry) -> Any:
    try:
        return entry.hook.state_dict()
    except Exception as error:
        add_note(error, f"in hook '{entry.name}' ({type(entry.hook).__name__}) at state_dict")
        raise


def _optimizer_state(runner: Runner) -> dict[str, Any]:
    """The state of the optimizers, with every rank's gradients where ranks differ.

    They do in an open window: ranks add gradients up apart from each other until its last backward.
    """
    state = runner.optim_wrapper.state_dict()
    first, _ = runner.optim_wrapper.windows.bounds(runner.iter)
    is_open = first != runner.iter
    if is_open and runner.world_size > 1:
        gradients = map_tensors(state.pop("gradients"), Tensor.cpu)
        state["gradients_of_ranks"] = dist.gather(gradients)
    return state


def _gradients_of_this_rank(saved: list[dict[str, list[Tensor | None]]]) -> dict[str, Any]:
    """What this rank had added up; their mean over ranks if there are others now than then.

    The mean is what ranks make of them, so it is the same whatever their number.
    """
    if len(saved) == dist.world_size():
        return saved[dist.rank()]

    def mean(of_ranks: tuple[Tensor | None, ...]) -> Tensor | None:
        some = [gradient for gradient in of_ranks if gradient is not None]
        return torch.stack(some).sum(0) / len(of_ranks) if some else None

    return {name: list(map(mean, zip(*(s[name] for s in saved), strict=True))) for name in saved[0]}


def ensure_loadable(checkpoint: Mapping[str, Any]) -> None:
    """Refuse states that could not be loaded again, naming where they stand."""
    for key, value in checkpoint.items():
        ensure_plain(value, key)


def refuse_states_that_cannot_be_saved(runner: Runner) -> None:
    """Look at the hooks' states before the first batch, not when a save is due hours later."""
    for entry in runner.hooks.entries:
        if hasattr(entry.hook, "state_dict"):
            ensure_plain(_state_of(entry), f"hooks.{entry.name}")
            if not hasattr(entry.hook, "load_state_dict"):
                raise ConfigError(
                    f"hooks.{entry.name}: {type(entry.hook).__name__} has a state_dict and no "
                    "load_state_dict, so a resumed run would lose it; add one"
                )


def restore_run(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    """Put back counters, optimizers, schedulers, hub and objective, which `check_resumable` passed.

    A run that left its seed open goes on with the one it drew.
    """
    runner.state.load_state_dict(checkpoint["loop"])
    optimizer = dict(checkpoint["optimizer"])
    gradients = optimizer.get("gradients_of_ranks", optimizer.get("gradients"))
    if isinstance(gradients, list):
        optimizer["gradients"] = _gradients_of_this_rank(gradients)
    runner.optim_wrapper.load_state_dict(optimizer)
    runner.optim_wrapper.states.hold_back_group_values(optimizer)
    schedulers = runner.param_schedulers
    states = checkpoint["param_schedulers"]
    schedulers.load_state_dict({n: s for n, s in states.items() if n in schedulers.schedulers})
    runner.message_hub.load_state_dict(checkpoint["message_hub"])
    if "beside" in checkpoint:
        runner.checkpointer.beside.load_state_dict(checkpoint["beside"])
    if "buffers" in checkpoint:
        rank_buffers.load_state(runner.model, checkpoint["buffers"])
    saved = checkpoint["objective"]
    if (
        runner.objective is not None
        and saved is not None
        and saved["name"] == runner.objective.name
    ):
        for key, value in saved.items():
            setattr(runner.objective, key, value)
    if draws_seed(runner):
        runner.seed = checkpoint["meta"]["seed"]
        for loader in (runner.train_dataloader, runner.val_dataloader, runner.test_dataloader):
            if loader is not None and isinstance(loader.batch_sampler, BatchSampler):
                loader.batch_sampler.seed = runner.seed


def restore_end(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    """A run that was killed when it had already decided to end ends, unless its budget changed."""
    loop = checkpoint["loop"]
    if loop.get("budget") == _budget(runner) and loop["final_reason"]:
        runner.state.stop(loop["final_reason"])


def _budget(runner: Runner) -> list[int | None]:
    return [runner.settings.max_epochs, runner.settings.max_iters]


def restore_hooks(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    """Put back the hooks' states by name and what they had set, then the generators, last of all.

    Raises:
        ConfigError: for a state that its hook does not take.
    """
    states = checkpoint["hooks"]
    for entry in runner.hooks.entries:
        if entry.name in states and hasattr(entry.hook, "load_state_dict"):
            try:
                entry.hook.load_state_dict(states[entry.name])
            except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
                raise ConfigError(
                    f"hooks.{entry.name}: does not take its state from the checkpoint "
                    f"({type(error).__name__}: {error}); begin it anew with "
                    f"'resume_ignore=[hooks.{entry.name}]'"
                ) from error
    runner.optim_wrapper.states.group_values.put_back()
    runner.param_schedulers.put_back(checkpoint.get("scheduled", {}))
    if "beside" in checkpoint:
        runner.checkpointer.beside.load_values(checkpoint["beside"])
    if "frozen" in checkpoint:
        runner.checkpointer.frozen.load_state_dict(checkpoint["frozen"])
    streams = {"stream": runner.train_dataloader, "val_stream": runner.val_dataloader}
    for key, loader in streams.items():
        states = checkpoint.get(key, ())
        if isinstance(loader, BatchStream) and len(states) == dist.world_size():
            loader.load_state_dict(states[dist.rank()])
    saved = checkpoint["rng"]
    if len(saved) == dist.world_size():
        state = dict(saved[dist.rank()])
        if "cuda" in state:
            state["cuda"] = state["cuda"][: torch.cuda.device_count()]
        runner.set_rng_state(state)

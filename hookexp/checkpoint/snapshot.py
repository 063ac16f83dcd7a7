"""What a checkpoint holds, and how it goes back into a run.

meta              versions, counters, seed, time: what depends on clock or machine
message_hub       windows of logged scalars (times among them)
state_dict        the model's weights
optimizer         optimizers, gradient scaler, gradients of an open window
param_schedulers  what is not a function of the position
loop              counters and what comes next
objective         the best value of the run's metric
hooks             each hook's state under its config name
rng               the random number generators of each rank
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from hookexp import dist, seed
from hookexp.checkpoint.plain import ensure_plain
from hookexp.errors import ConfigError

if TYPE_CHECKING:
    from hookexp.runner import Runner
    from hookexp.state import SaveRequest


def collect(runner: Runner, request: SaveRequest) -> dict[str, Any]:
    """Everything the next step depends on, as tensors and plain types."""
    checkpoint: dict[str, Any] = {
        "meta": {
            "epoch": runner.epoch,
            "iter": runner.iter,
            "seed": runner.seed,
            "world_size": runner.world_size,
            "experiment_name": runner.experiment_name,
            "torch_version": str(torch.__version__),
            "time": time.strftime("%Y-%m-%dT%H:%M:%S"),
            "sinks": runner.sinks.state_dict(),
        },
        "message_hub": runner.message_hub.state_dict(),
        "state_dict": dist.unwrap(runner.model).state_dict(),
        "loop": runner.state.state_dict(),
        "objective": None if runner.objective is None else asdict(runner.objective),
        "hooks": {
            entry.name: entry.hook.state_dict()
            for entry in runner.hooks.entries
            if hasattr(entry.hook, "state_dict")
        },
        "rng": dist.gather(seed.rng_state()),
    }
    if request.with_optimizer:
        checkpoint["optimizer"] = runner.optim_wrapper.state_dict()
    if request.with_param_schedulers:
        checkpoint["param_schedulers"] = runner.param_schedulers.state_dict()
    return checkpoint


def ensure_loadable(checkpoint: Mapping[str, Any]) -> None:
    """Refuse states that could not be loaded again, naming where they stand."""
    for key, value in checkpoint.items():
        ensure_plain(value, key)


def refuse_states_that_cannot_be_saved(runner: Runner) -> None:
    """Look at the hooks' states before the first batch, not when a save is due hours later."""
    for entry in runner.hooks.entries:
        if hasattr(entry.hook, "state_dict"):
            ensure_plain(entry.hook.state_dict(), f"hooks.{entry.name}")


def refuse_other_model(model: nn.Module, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Compare names and shapes of a checkpoint's weights with those of the model.

    Raises:
        ConfigError: if they differ; it lists how.
    """
    if "state_dict" not in checkpoint:
        raise ConfigError(
            f"checkpoint {path}: has no 'state_dict'; it has: {', '.join(map(str, checkpoint))}"
        )
    differences = _differences(checkpoint["state_dict"], dist.unwrap(model).state_dict())
    if differences:
        raise ConfigError(
            f"checkpoint {path} is of another model; nothing was loaded:\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\nSet the model group as it was when the checkpoint was written."
        )


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Load `state_dict` into the model; if it is of another model, leave the model as it is."""
    refuse_other_model(model, checkpoint, path)
    dist.unwrap(model).load_state_dict(checkpoint["state_dict"])


def restore_run(runner: Runner, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Put back counters, optimizers, schedulers, hub and objective."""
    missing = [k for k in ("loop", "optimizer", "param_schedulers", "hooks") if k not in checkpoint]
    if missing:
        raise ConfigError(
            f"resume={path}: the checkpoint holds no {', '.join(missing)}, so training cannot "
            "continue from it; take its weights with load_from=PATH instead"
        )
    runner.state.load_state_dict(checkpoint["loop"])
    runner.optim_wrapper.load_state_dict(checkpoint["optimizer"])
    runner.param_schedulers.load_state_dict(checkpoint["param_schedulers"])
    runner.message_hub.load_state_dict(checkpoint["message_hub"])
    saved = checkpoint["objective"]
    if (
        runner.objective is not None
        and saved is not None
        and saved["name"] == runner.objective.name
    ):
        for key, value in saved.items():
            setattr(runner.objective, key, value)


def restore_hooks(runner: Runner, checkpoint: Mapping[str, Any]) -> None:
    """Put back the hooks' states by name, then the generators, last of all."""
    states = checkpoint["hooks"]
    for entry in runner.hooks.entries:
        if entry.name in states and hasattr(entry.hook, "load_state_dict"):
            entry.hook.load_state_dict(states[entry.name])
        elif hasattr(entry.hook, "state_dict"):
            runner.logger.warning(
                "hook '%s' has no state in the checkpoint and starts anew", entry.name
            )
    names = {entry.name for entry in runner.hooks.entries}
    for name in states:
        if name not in names:
            runner.logger.warning(
                "the checkpoint has a state of hook '%s', which this run does not have", name
            )
    saved = checkpoint["rng"]
    if len(saved) == dist.world_size():
        seed.set_rng_state(saved[dist.rank()])
    else:
        runner.logger.warning(
            "the checkpoint is of %d processes and this run has %d: it goes on with other random "
            "numbers and other batches, so not exactly",
            len(saved),
            dist.world_size(),
        )


def _differences(given: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> list[str]:
    lines = [
        f"only in the model: {name} {_shape(wanted[name])}" for name in wanted if name not in given
    ]
    lines += [
        f"only in the checkpoint: {name} {_shape(given[name])}"
        for name in given
        if name not in wanted
    ]
    lines += [
        f"{name}: {_shape(given[name])} in the checkpoint, {_shape(wanted[name])} in the model"
        for name in wanted
        if name in given and given[name].shape != wanted[name].shape
    ]
    shown = 12
    if len(lines) > shown:
        lines[shown:] = [f"... and {len(lines) - shown} more"]
    return lines


def _shape(tensor: Tensor) -> str:
    return f"({', '.join(map(str, tensor.shape))})"

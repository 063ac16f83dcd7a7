"""What a checkpoint holds against what a resumed run has: compared by name, before any change.

    only the run has it          it starts fresh, and one line says so: a hook that was added
    only the checkpoint has it   an error that names it: a hook that was taken out
    it means something else      an error that says how: another optimizer, batches of another size

`resume_ignore=[NAME, ...]` goes on without what is in error, by the names that the error gives:

    hooks.NAME, param_scheduler.NAME   the state is left out
    optimizer    what fits by the parameters' names is taken, the rest starts fresh
    scaler       the loss scale of fp16 is left out
    sampler      the position counts batches of another size or order: not the same samples
    rng          generators of other ranks or devices: the run goes on with other random numbers
    beside       what task and model keep beside the weights begins anew, such as a hidden state

The weights always have to fit; `load_from=PATH` takes what it can from another run.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from hookexp import dist
from hookexp.data.sampler import BatchSampler
from hookexp.data.stream import BatchStream
from hookexp.errors import ConfigError

if TYPE_CHECKING:
    from hookexp.runner import Runner

_SINGLE = ("optimizer", "scaler", "sampler", "rng", "beside")
_GROUPS = ("hooks.", "param_scheduler.")
_LABELS = {
    "seed": "seed",
    "num_samples": "data.train: samples",
    "limit": "trainer.limit_train_batches",
    "world_size": "ranks",
}
"""What is not a setting of `data`, of what a position in an epoch counts."""
_NEEDED = ("loop", "optimizer", "param_schedulers", "hooks", "rng", "sampler", "message_hub")


@dataclass(frozen=True)
class Finding:
    """Something that is not on both sides, or not the same on both."""

    name: str
    what: str
    is_fresh: bool = False
    """Whether only the run has it, which is no error."""


def check_ignored_names(names: Iterable[str]) -> tuple[str, ...]:
    """The names of `resume_ignore`.

    Raises:
        ConfigError: for one that can be none.
    """
    if isinstance(names, str):
        raise ConfigError(f"resume_ignore={names}: use a list, 'resume_ignore=[{names}]'")
    names = tuple(names)
    for name in names:
        if name not in _SINGLE and not str(name).startswith(_GROUPS):
            raise ConfigError(
                f"resume_ignore: {name} is no part of a checkpoint that can be left out; "
                f"use {', '.join(_SINGLE)}, hooks.NAME or param_scheduler.NAME"
            )
    return names


def sampler_of(runner: Runner) -> dict[str, Any]:
    """What the position in an epoch counts: batches of this size, in an order of this seed."""
    loader = runner.train_dataloader
    if isinstance(loader, BatchStream):
        size = loader.batch_size if isinstance(loader.batch_size, int) else None
        return {"batch_size": size, "limit": loader.limit}
    sampler = None if loader is None else loader.batch_sampler
    if not isinstance(sampler, BatchSampler):
        return {}
    names = ("num_samples", "batch_size", "seed", "shuffle", "drop_last", "limit", "world_size")
    return {name: getattr(sampler, name) for name in names}


def draws_seed(runner: Runner) -> bool:
    """Whether the config leaves the seed open (`seed=null`): a resumed run has that of before."""
    return runner.cfg.get("seed", runner.seed) is None


def check_resumable(
    runner: Runner, checkpoint: dict[str, Any], path: Path, ignored: Collection[str]
) -> None:
    """Compare a checkpoint with the run that is to continue it, and take out what is ignored.

    Raises:
        ConfigError: naming all that differs, and how to go on without it.
    """
    missing = [key for key in _NEEDED if key not in checkpoint]
    if missing:
        raise ConfigError(
            f"resume={path}: the checkpoint holds no {', '.join(missing)}, so training cannot "
            "continue from it; take its weights with load_from=PATH instead"
        )
    try:
        _leave_out(runner, checkpoint, ignored)
        findings = list(_findings(runner, checkpoint))
    except (KeyError, TypeError, AttributeError, IndexError, ValueError) as error:
        raise ConfigError(
            f"resume={path}: the checkpoint is not laid out as one of this version "
            f"({type(error).__name__}: {error}); take its weights with load_from=PATH instead"
        ) from error
    wrong = [f for f in findings if not f.is_fresh and f.name not in ignored]
    if wrong:
        names = ", ".join(dict.fromkeys(f.name for f in wrong))
        raise ConfigError(
            f"resume={path}: it does not fit this run; nothing was loaded:\n"
            + "\n".join(f"  {f.name}: {f.what}" for f in wrong)
            + f"\nSet the config as it was, or go on without: 'resume_ignore=[{names}]'"
        )
    for finding in findings:
        how = "" if finding.is_fresh else " (resume_ignore)"
        runner.logger.warning("resume: %s: %s%s", finding.name, finding.what, how)


def _leave_out(runner: Runner, checkpoint: dict[str, Any], ignored: Collection[str]) -> None:
    """Drop the ignored states of hooks and schedulers, and what is beside the model."""
    if "beside" in ignored and checkpoint.pop("beside", None) is not None:
        runner.logger.warning("resume: beside: what it holds is left out (resume_ignore)")
    for prefix, section in (("hooks.", "hooks"), ("param_scheduler.", "param_schedulers")):
        for path in ignored:
            name = path.removeprefix(prefix)
            if path.startswith(prefix) and checkpoint[section].pop(name, None) is not None:
                runner.logger.warning("resume: %s: its state is left out (resume_ignore)", path)


def _findings(runner: Runner, checkpoint: Mapping[str, Any]) -> Iterator[Finding]:
    absent = [key for key in runner.state.state_dict() if key not in checkpoint["loop"]]
    if absent:
        raise KeyError(f"loop.{absent[0]}")
    yield from _of_hooks(runner, checkpoint["hooks"])
    yield from _of_schedulers(runner, checkpoint["param_schedulers"])
    yield from _of_optimizers(runner, checkpoint["optimizer"])
    yield from _of_sampler(runner, checkpoint)
    yield from _of_generators(checkpoint["rng"])


def _of_hooks(runner: Runner, states: Mapping[str, Any]) -> Iterator[Finding]:
    with_state = [e.name for e in runner.hooks.entries if hasattr(e.hook, "load_state_dict")]
    for name in with_state:
        if name not in states:
            yield Finding(f"hooks.{name}", "has no state in the checkpoint, starts fresh", True)
    for name, state in states.items():
        if state and name not in with_state:
            yield Finding(f"hooks.{name}", "has a state in the checkpoint and is not in this run")


def _of_schedulers(runner: Runner, states: Mapping[str, Any]) -> Iterator[Finding]:
    schedulers = runner.param_schedulers.schedulers
    for name, scheduler in schedulers.items():
        if name not in states and scheduler.state_dict():
            name = f"param_scheduler.{name}"
            yield Finding(name, "has no state in the checkpoint, starts fresh", True)
    for name in states:
        if name not in schedulers or not schedulers[name].state_dict():
            name = f"param_scheduler.{name}"
            yield Finding(name, "has a state in the checkpoint and needs none in this run")


def _of_optimizers(runner: Runner, saved: Mapping[str, Any]) -> Iterator[Finding]:
    wrapper = runner.optim_wrapper
    for name in saved["kinds"]:
        if name not in wrapper.optimizers:
            yield Finding("optimizer", f"{name!r} is in the checkpoint and not in this run")
    for name, optimizer in wrapper.optimizers.items():
        kind = type(optimizer).__name__
        was = saved["kinds"].get(name)
        if was is None:
            yield Finding("optimizer", f"{name!r} is not in the checkpoint")
        elif was != kind:
            yield Finding("optimizer", f"{name!r} was of class {was} and is of class {kind}")
        else:
            now, before = wrapper.states.names_of(name), saved["names"][name]
            for where, some, others in (
                ("this run", now, before),
                ("the checkpoint", before, now),
            ):
                names = [n for n in some if n not in set(others)]
                if names:
                    yield Finding("optimizer", f"{name!r} has only in {where}: {_listed(names)}")
    if saved["scaler"] and not wrapper.scaler.is_enabled():
        yield Finding("scaler", "the checkpoint is of a run with trainer.precision=fp16")
    elif wrapper.scaler.is_enabled() and not saved["scaler"]:
        yield Finding("scaler", "is not in the checkpoint, starts fresh", True)


def _of_sampler(runner: Runner, checkpoint: Mapping[str, Any]) -> Iterator[Finding]:
    """At the end of an epoch only the seed matters: the next one begins at its first batch."""
    before, now = checkpoint["sampler"], sampler_of(runner)
    counts = set(now)
    if checkpoint["loop"]["batch_in_epoch"] == 0:
        counts &= {"seed"}
    if draws_seed(runner):
        counts -= {"seed"}
    for key, value in now.items():
        was = before.get(key, value)
        if was != value and key in counts:
            yield Finding("sampler", f"{_LABELS.get(key, f'data.{key}')} was {was} and is {value}")


def _of_generators(saved: list[Mapping[str, Any]]) -> Iterator[Finding]:
    if len(saved) != dist.world_size():
        yield Finding("rng", f"is of {len(saved)} processes and this run has {dist.world_size()}")
        return
    states = saved[dist.rank()]
    if not {"python", "numpy", "torch"} <= set(states):
        raise KeyError("rng.torch")
    before, now = len(states.get("cuda", ())), torch.cuda.device_count()
    if before > now:
        yield Finding("rng", f"is of {before} GPUs and this process has {now}")
    elif before < now and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        yield Finding("rng", f"is of {before} GPUs and this process has {now}", True)


def _listed(names: list[str]) -> str:
    shown = 6
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more

"""Which checkpoint a run begins with, and how it gets into the run."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from hookexp import dist
from hookexp.checkpoint import snapshot, weights
from hookexp.checkpoint.arithmetic import arithmetic_of, what_differs
from hookexp.checkpoint.foreign import SAFETENSORS, fitted, read_safetensors, with_weights
from hookexp.checkpoint.manifest import check_resumable
from hookexp.checkpoint.reading import load_checkpoint, read_file
from hookexp.checkpoint.store import CheckpointStore
from hookexp.errors import ConfigError

if TYPE_CHECKING:
    from hookexp.runner import Runner

_RAW_WEIGHTS = "ema_state_dict"
_WAY_OUT = "; if you know where it comes from, load_from_trusted=true lets it"


@dataclass(frozen=True)
class Start:
    """A checkpoint that was read, for a run to begin with."""

    path: Path
    checkpoint: dict[str, Any]


def read_start(
    resume: str | None,
    load_from: str | None,
    own: CheckpointStore,
    model: nn.Module,
    trusted: bool = False,
) -> Start | None:
    """Read what `resume` or `load_from` name; None if a run begins with neither.

    Args:
        own: the run's own checkpoints, where `resume=auto` looks.
        model: a file to `load_from` may be another program's; names are fitted to this model's.
        trusted: whether a file to `load_from` may run code.

    Raises:
        ConfigError: for a file that cannot be read or that could run code.
    """
    path = path_to_load(resume, load_from, own)
    if path is None:
        return None
    if resume is not None:
        return Start(path, load_checkpoint(path))
    if path.suffix == SAFETENSORS:
        checkpoint = read_safetensors(path)
    else:
        checkpoint = with_weights(read_file(path, trusted, _WAY_OUT), path)
    names = dist.unwrap(model).state_dict()
    return Start(path, {**checkpoint, "state_dict": fitted(checkpoint["state_dict"], names)})


def path_to_load(resume: str | None, load_from: str | None, own: CheckpointStore) -> Path | None:
    """The file that `resume` or `load_from` mean; a folder means its newest whole checkpoint.

    Raises:
        ConfigError: for a folder without one, or with damaged ones only, and for a damaged file.
    """
    if resume == "auto":
        return own.newest()
    named = resume or load_from
    if named is None:
        return None
    path = Path(named).expanduser()
    if not path.is_dir():
        CheckpointStore(path.parent).refuse_damaged(path)
        return path
    newest = CheckpointStore(path).newest()
    if newest is None:
        key = "resume" if resume else "load_from"
        raise ConfigError(f"{key}={named}: there is no checkpoint in this folder")
    return newest


def load_into(runner: Runner, start: Start, ignored: tuple[str, ...] = ()) -> dict[str, Any]:
    """Load weights and, in a resumed run, all that can be before hooks have begun.

    All of the checkpoint is looked at before anything of it is loaded.

    Args:
        ignored: what a resumed run goes on without, see `manifest`.

    Returns:
        The checkpoint, if hooks and generators have to be restored from it later; else nothing.
    """
    path, checkpoint = start.path, start.checkpoint
    weights.refuse_without_weights(checkpoint, path)
    loaded = dict(checkpoint["state_dict"])
    runner.hooks.after_load_checkpoint(runner, checkpoint=checkpoint)
    if runner.resumed:
        if _RAW_WEIGHTS in checkpoint and _are_same(loaded, checkpoint["state_dict"]):
            # No hook of this run took the averages, so training goes on with the raw weights.
            checkpoint["state_dict"] = checkpoint[_RAW_WEIGHTS]
        weights.refuse_other_model(runner.model, checkpoint, path)
        check_resumable(runner, checkpoint, path, ignored)
    weights.load_weights(runner.model, checkpoint, path)
    runner.logger.info("weights loaded from %s", path)
    if not runner.resumed:
        return {}
    snapshot.restore_run(runner, checkpoint)
    if path.parent.resolve() == runner.writer.store.folder.resolve():
        runner.sinks.load_state_dict(checkpoint["meta"]["sinks"])
    runner.logger.info("resumed after epoch %d, iteration %d", runner.epoch, runner.iter)
    then, now = checkpoint.get("meta", {}).get("arithmetic", {}), arithmetic_of(runner.device)
    differs = what_differs(then, now)
    if differs and runner.rank == 0:
        runner.logger.warning("computes with %s", differs)
    return checkpoint


def _are_same(one: dict[str, Any], two: dict[str, Any]) -> bool:
    """Whether two states hold the same tensors, not only equal ones."""
    return one.keys() == two.keys() and all(two[name] is value for name, value in one.items())

"""Which checkpoint a run begins with, and how it gets into the run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from hookexp.checkpoint import snapshot
from hookexp.checkpoint.store import CheckpointStore, load_checkpoint
from hookexp.errors import ConfigError

if TYPE_CHECKING:
    from hookexp.runner import Runner


def path_to_load(resume: str | None, load_from: str | None, own: CheckpointStore) -> Path | None:
    """The file that `resume` or `load_from` mean; a folder means its newest whole checkpoint.

    Args:
        own: the run's own checkpoints, where `resume=auto` looks.

    Raises:
        ConfigError: for a folder without one, or with damaged ones only.
    """
    if resume == "auto":
        return own.newest()
    named = resume or load_from
    if named is None:
        return None
    path = Path(named).expanduser()
    if not path.is_dir():
        return path
    newest = CheckpointStore(path).newest()
    if newest is None:
        key = "resume" if resume else "load_from"
        raise ConfigError(f"{key}={named}: there is no checkpoint in this folder")
    return newest


def load_into(runner: Runner, path: Path) -> dict[str, Any]:
    """Load weights and, in a resumed run, all that can be before hooks have begun.

    Returns:
        The checkpoint, if hooks and generators have to be restored from it later; else nothing.
    """
    checkpoint = load_checkpoint(path)
    runner.hooks.after_load_checkpoint(runner, checkpoint=checkpoint)
    snapshot.load_weights(runner.model, checkpoint, path)
    runner.logger.info("weights loaded from %s", path)
    if not runner.resumed:
        return {}
    snapshot.restore_run(runner, checkpoint, path)
    if path.parent.resolve() == runner.writer.store.folder.resolve():
        runner.sinks.load_state_dict(checkpoint["meta"]["sinks"])
    runner.logger.info("resumed after epoch %d, iteration %d", runner.epoch, runner.iter)
    return checkpoint

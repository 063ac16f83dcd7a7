"""Real runs in processes of their own that are killed: shared by the tests and the benchmark.

A run is forked from a process that has imported everything, so that it begins in milliseconds.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import torch

import hookexp.build
import hookexp.hooks.early_stopping
import hookexp.hooks.ema
import hookexp.hooks.iter_timer
import hookexp.hooks.logger
import hookexp.hooks.param_scheduler
import hookexp.hooks.runtime_info
import hookexp.models.convnet
import hookexp.tasks.supervised  # noqa: F401
from hookexp import app
from hookexp.checkpoint.store import CheckpointStore, load_checkpoint

CLOCK = ("time", "data_time", "eta", "memory")


def start(*words: str) -> int:
    """Fork a process that runs a command line; returns its id."""
    pid = os.fork()
    if pid:
        return pid
    try:
        torch.set_num_threads(1)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        sys.argv = ["hookexp", *words]
        app.main()
        code = 0
    except SystemExit as exit_:
        code = int(exit_.code or 0)
    except BaseException:
        code = 70
    os._exit(code)


def finish(pid: int) -> int:
    """Wait for a process; its exit code, or minus the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def kill_in_the_middle(pid: int, folder: Path, seconds: float) -> int:
    """SIGKILL a run that long after its first save; what it ended with (it may be quicker)."""
    pointer = folder / "last_checkpoint"
    before = _stamp(pointer)
    ended, status = os.waitpid(pid, os.WNOHANG)
    while not ended and _stamp(pointer) == before:
        time.sleep(0.002)
        ended, status = os.waitpid(pid, os.WNOHANG)
    if ended:
        return os.waitstatus_to_exitcode(status)
    time.sleep(seconds)
    os.kill(pid, signal.SIGKILL)
    return finish(pid)


def newest_iteration(folder: Path) -> int:
    """How far the newest checkpoint is."""
    newest = CheckpointStore(folder).newest()
    return 0 if newest is None else int(load_checkpoint(newest)["loop"]["iter"])


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def torn_files(folder: Path) -> list[str]:
    """Names in a run's folder that stand for less than they should."""
    if not (folder / "last_checkpoint").exists():
        return []
    store = CheckpointStore(folder)
    _, *lines = (folder / "last_checkpoint").read_text().splitlines()
    names = [line.split(" ", 2)[2] for line in lines]
    return [name for name in names if (folder / name).exists() and not store.is_whole(name)]


def outcome(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a finished run came to: its last checkpoint and its log, without clock and disk."""
    newest = CheckpointStore(folder).newest()
    assert newest is not None
    checkpoint = load_checkpoint(newest)
    for key in ("meta", "message_hub"):
        del checkpoint[key]
    rows = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    return checkpoint, [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]

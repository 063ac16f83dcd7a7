"""Runs in processes of their own that are killed: shared by tests and benchmarks.

A run is forked from a process that has imported everything, so that it begins in milliseconds;
`launch` starts the real command instead, which takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import os
import random
import re
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import tensorboard.compat.proto.event_pb2  # noqa: F401
import torch
import torch._dynamo  # An optimizer imports it when it is made, which takes seconds.
from torch.utils.data import Dataset

from hookexp import app
from hookexp.checkpoint.reading import load_checkpoint
from hookexp.checkpoint.store import CheckpointStore
from hookexp.data.digits import Digits
from hookexp.errors import ConfigError
from hookexp.hook import Hook

CLOCK = ("time", "data_time", "eta", "memory")
REPOSITORY = Path(__file__).resolve().parent.parent


class CroppedDigits(Dataset):
    """Digits one by one, each a random crop, at random turned dark, with a little noise.

    Every sample draws from the global generators of Python, NumPy and torch.
    """

    def __init__(self) -> None:
        self.digits = Digits("train")

    def __len__(self) -> int:
        return len(self.digits)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, torch.Tensor]:
        image, label = self.digits[index]
        top, left = random.randrange(3), np.random.randint(3)
        padded = torch.nn.functional.pad(image, (1, 1, 1, 1))
        image = padded[:, top : top + 8, left : left + 8]
        image = 1 - image if random.random() < 0.1 else image
        return image + 0.01 * torch.randn(image.shape), label


class KillAt(Hook):
    """SIGKILLs its own process in an iteration, or at a batch of the first validation after it."""

    def __init__(self, iteration: int, val_batch: int | None = None) -> None:
        self.iteration = iteration
        self.val_batch = val_batch

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if self.val_batch is None and runner.iter + 1 == self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if batch_idx == self.val_batch and runner.iter >= self.iteration:
            os.kill(os.getpid(), signal.SIGKILL)


def kill_at(iteration: int, val_batch: int | None = None) -> list[str]:
    """The words that let a run kill itself there."""
    words = ["+hooks.kill._target_=killing.KillAt", f"+hooks.kill.iteration={iteration}"]
    return words if val_batch is None else [*words, f"+hooks.kill.val_batch={val_batch}"]


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


def launch(*words: str) -> int:
    """Start `python -m hookexp` in a process of its own; returns its id."""
    paths = [str(REPOSITORY), str(REPOSITORY / "tests"), os.environ.get("PYTHONPATH", "")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(
        [sys.executable, "-m", "hookexp", *words],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    # Whoever waits does so by the id; the object must not wait a second time.
    process.returncode = 0
    return process.pid


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
    """How far the newest checkpoint is; -1 if none of those there is whole."""
    try:
        newest = CheckpointStore(folder).newest()
    except ConfigError:
        return -1
    return 0 if newest is None else int(load_checkpoint(newest)["loop"]["iter"])


def _stamp(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else 0


def listed_files(folder: Path) -> list[str]:
    """The checkpoints that a folder says it has."""
    pointer = folder / "last_checkpoint"
    if not pointer.exists():
        return []
    _, *lines = pointer.read_text().splitlines()
    return list(dict.fromkeys(line.split(" ", 2)[2] for line in lines))


def torn_files(folder: Path) -> list[str]:
    """Names in a run's folder that stand for less than they should, or for nothing."""
    store = CheckpointStore(folder)
    torn = [name for name in listed_files(folder) if not store.is_whole(name)]
    for path in folder.glob("*.pth"):
        try:
            load_checkpoint(path)
        except ConfigError:
            torn.append(path.name)
    return torn


def outcome(folder: Path) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What a finished run came to: its last checkpoint and its log, without clock and disk."""
    newest = CheckpointStore(folder).newest()
    assert newest is not None
    checkpoint = load_checkpoint(newest)
    for key in ("time", "sinks", "cost"):
        checkpoint["meta"].pop(key, None)
    windows = checkpoint["message_hub"]["scalars"]
    for key in list(windows):
        if key.split("/")[-1] in CLOCK:
            del windows[key]
    rows = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    return checkpoint, [{k: v for k, v in row.items() if k not in CLOCK} for row in rows]


def differences(one: Path, two: Path) -> list[str]:
    """Where two finished runs differ, byte by byte; empty if they are the same run."""
    states = [dict(_leaves(outcome(folder))) for folder in (one, two)]
    keys = list(dict.fromkeys([*states[0], *states[1]]))
    return [key for key in keys if states[0].get(key) != states[1].get(key)]


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, bytes]]:
    """Every value of a nested state under its path, as bytes; the order of keys counts too."""
    if isinstance(value, torch.Tensor):
        content = value.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        shape = f"{value.dtype} {tuple(value.shape)} ".encode()
        yield path, shape + hashlib.sha256(content).digest()
    elif isinstance(value, dict):
        yield path, repr(list(value)).encode()
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}")
    elif isinstance(value, (list, tuple)):
        yield path, repr((type(value), len(value))).encode()
        for index, item in enumerate(value):
            yield from _leaves(item, f"{path}[{index}]")
    elif isinstance(value, float):
        yield path, b"float" + struct.pack("<d", value)
    else:
        yield path, re.sub(r" at 0x\w+", "", repr((type(value), value))).encode()


def curves(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of every TensorBoard curve of a run, clocks aside, as TensorBoard reads."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.split("/")[-1] not in CLOCK]
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in tags}

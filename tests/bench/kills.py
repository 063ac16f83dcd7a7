"""Kills the real command with SIGKILL again and again, and compares what it comes to.

    nice python tests/bench/kills.py --kills 200 --keep 1 2 3

Each life of a run is `python -m hookexp hydra.run.dir=FOLDER resume=auto ...` in a process of its
own, with a checkpoint at every iteration. Half of the kills are aimed at a save: they come a
moment after a temporary file was seen. Most of the others come at any time after the first save
of that life, some before it, while the run is put together and resumed. A run that got to its
end is compared, byte by byte, with one that was never killed: weights, optimizer, averages,
generators, each line of scalars.jsonl and each TensorBoard curve, clocks aside.

A life takes as long as importing torch does, so 600 kills take an hour on two lanes. `--forked`
forks each life from a process that has imported everything: minutes, and all but the start of the
process is the same.
"""

from __future__ import annotations

import argparse
import os
import random
import signal
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, fields
from functools import partial
from multiprocessing import get_context
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from killing import (
    curves,
    differences,
    finish,
    launch,
    listed_files,
    newest_iteration,
    start,
    torn_files,
)

RECIPE = [
    "hooks=+ema+early_stopping",
    "hooks/optimizer=accumulate",
    "hooks.optimizer.cumulative_iters=3",
    "hooks.early_stopping.patience=50",
    "hooks.checkpoint.by_epoch=false",
    "hooks.checkpoint.interval=1",
    "hooks.logger.interval=3",
    "param_scheduler=plateau",
    "param_scheduler.plateau.patience=0",
    "sinks=-console",
    "trainer.device=cpu",
    "trainer.max_epochs=6",
    "trainer.limit_train_batches=10",
    "trainer.limit_val_batches=1",
    "data.batch_size=16",
    "model.width=4",
]
SECONDS_OF_A_SAVE = 0.012
SECONDS_OF_TRAINING = 0.3
SECONDS_OF_A_START = 6.0
SECONDS_OF_A_FORKED_START = 0.3


@dataclass
class Tally:
    """What a number of kills came to."""

    kills: int = 0
    aimed: int = 0
    interrupted: int = 0
    torn: int = 0
    lost: int = 0
    leftover: int = 0
    continued: int = 0
    runs: int = 0
    equal: int = 0

    def add(self, other: Tally) -> None:
        for field in fields(self):
            setattr(self, field.name, getattr(self, field.name) + getattr(other, field.name))


HEAD = {
    "keep": "kept",
    "kills": "kills",
    "aimed": "aimed",
    "interrupted": "in a save",
    "torn": "torn",
    "lost": "cannot resume",
    "leftover": "left over",
    "continued": "continued",
    "runs": "runs ended",
    "equal": "equal",
}


def row_of(keep: int, tally: Tally) -> str:
    row = {"keep": keep, **vars(tally)}
    return "  ".join(str(row[key]).rjust(len(title)) for key, title in HEAD.items())


def kill_somewhere(
    pid: int, folder: Path, rng: random.Random, seconds_of_a_start: float
) -> tuple[int, bool]:
    """Kill a run at some time; what it ended with, and whether that was aimed at a save."""
    when = rng.random()
    aimed = when < 0.5
    if when >= 0.9:
        _sleep_or_end(pid, rng.uniform(0.0, seconds_of_a_start))
    else:
        first = _pointer(folder)
        _wait_until(pid, lambda: _pointer(folder) != first)
        # Where in its course a life ends: within some saves of its first.
        _sleep_or_end(pid, rng.uniform(0.0, SECONDS_OF_TRAINING))
    if aimed:
        kind = rng.choice([".iter_*.tmp", ".last_checkpoint*.tmp"])
        _wait_until(pid, lambda: any(folder.glob(kind)))
        time.sleep(rng.uniform(0.0, SECONDS_OF_A_SAVE))
    os.kill(pid, signal.SIGKILL)  # Of a process that has ended, but was not waited for: no harm.
    return finish(pid), aimed


def _pointer(folder: Path) -> int:
    try:
        return (folder / "last_checkpoint").stat().st_mtime_ns
    except FileNotFoundError:
        return 0


def _has_ended(pid: int) -> bool:
    return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None


def _wait_until(pid: int, holds: object) -> None:
    while not holds() and not _has_ended(pid):  # type: ignore[operator]
        time.sleep(0.0005)


def _sleep_or_end(pid: int, seconds: float) -> None:
    until = time.monotonic() + seconds
    _wait_until(pid, lambda: time.monotonic() >= until)


def lane(kills: int, seed: int, keep: int, folder: Path, whole: Path, forked: bool) -> Tally:
    """Runs one after the other, each killed until it gets to its end, until there were `kills`."""
    rng, tally = random.Random(seed), Tally()
    begin = start if forked else launch
    seconds_of_a_start = SECONDS_OF_A_FORKED_START if forked else SECONDS_OF_A_START
    while tally.kills < kills:
        cut = folder / f"cut_{seed}_{tally.runs}"
        command = [f"hydra.run.dir={cut}", "resume=auto", *RECIPE]
        command.append(f"hooks.checkpoint.max_keep_ckpts={keep}")
        before, has_to_continue, ended = 0, False, -signal.SIGKILL
        while tally.kills < kills:
            ended, aimed = kill_somewhere(begin(*command), cut, rng, seconds_of_a_start)
            reached = newest_iteration(cut)
            # It may be killed again before it has come further, but it never is further back.
            tally.continued += has_to_continue and reached >= before
            if ended == 0:
                break
            assert ended == -signal.SIGKILL, f"a life in {cut} ended with {ended}"
            tally.kills += 1
            has_to_continue = True
            tally.aimed += aimed
            tally.interrupted += _was_saving(cut)
            tally.torn += len(torn_files(cut))
            tally.lost += reached < before
            before = reached
        if ended != 0:
            assert finish(begin(*command)) == 0, cut
            tally.continued += newest_iteration(cut) >= before
        tally.leftover += len(list(cut.glob("*.pth"))) - len(listed_files(cut))
        found = differences(whole, cut)
        if curves(whole) != curves(cut):
            found.append("TensorBoard")
        if found:
            print(f"{cut} differs: {', '.join(found[:5])}", flush=True)
        tally.runs += 1
        tally.equal += not found
        print(f"{row_of(keep, tally)}  (lane {seed % 100} so far)", file=sys.stderr, flush=True)
    return tally


def _was_saving(folder: Path) -> bool:
    """Whether a save was begun and not ended: a draft is left, or a file nobody lists."""
    unlisted = {path.name for path in folder.glob("*.pth")} - set(listed_files(folder))
    return bool(unlisted) or any(folder.glob(".*.tmp"))


def kill_runs(kills: int, keep: int, lanes: int, forked: bool) -> Tally:
    folder = Path(tempfile.mkdtemp())
    whole = folder / "whole"
    recipe = [*RECIPE, f"hooks.checkpoint.max_keep_ckpts={keep}"]
    assert finish(launch(f"hydra.run.dir={whole}", *recipe)) == 0
    total = Tally()
    shares = [kills // lanes + (n < kills % lanes) for n in range(lanes)]
    one = partial(lane, keep=keep, folder=folder, whole=whole, forked=forked)
    with ProcessPoolExecutor(lanes, mp_context=get_context("fork")) as pool:
        for tally in pool.map(one, shares, [100 * keep + n for n in range(lanes)]):
            total.add(tally)
    return total


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--keep", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--lanes", type=int, default=2, help="how many are killed side by side")
    parser.add_argument("--forked", action="store_true", help="fork instead of starting Python")
    arguments = parser.parse_args()
    print("  ".join(HEAD.values()), flush=True)
    for keep in arguments.keep:
        tally = kill_runs(arguments.kills, keep, arguments.lanes, arguments.forked)
        print(row_of(keep, tally), flush=True)


if __name__ == "__main__":
    main()

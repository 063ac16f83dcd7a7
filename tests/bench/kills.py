"""Kills a run with SIGKILL again and again, and compares what it comes to with one that was not.

    python tests/bench/kills.py --kills 200 --keep 1

A checkpoint is asked for at every iteration, so that about half of the kills fall into a save.
Prints how many attempts could continue, how many files under a final name were torn, and whether
weights, optimizer, averages, generators and log rows are those of the uninterrupted run.
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

from killing import finish, kill_in_the_middle, newest_iteration, outcome, start, torn_files
from test_kill import RECIPE
from test_resume import assert_equal


def rounds_of_kills(kills: int, keep: int) -> None:
    folder = Path(tempfile.mkdtemp())
    recipe = [*RECIPE, f"hooks.checkpoint.max_keep_ckpts={keep}"]
    whole = folder / "whole"
    assert finish(start(f"hydra.run.dir={whole}", *recipe)) == 0
    rng = random.Random(keep)
    done = continued = torn = equal = runs = inside_a_save = 0
    while done < kills:
        runs += 1
        cut = folder / f"cut_{runs}"
        command = [f"hydra.run.dir={cut}", "resume=auto", *recipe]
        before = 0
        while done < kills:
            ended = kill_in_the_middle(start(*command), cut, rng.uniform(0.0, 0.06))
            torn += len(torn_files(cut))
            if ended == 0:
                break
            assert ended == -9, f"an attempt ended with {ended}"
            done += 1
            inside_a_save += any(cut.glob(".*.tmp"))
            continued += newest_iteration(cut) > before
            before = newest_iteration(cut)
        assert finish(start(*command)) == 0
        assert_equal(outcome(whole), outcome(cut))
        equal += 1
    print(
        f"keep {keep}: {done} kills in {runs} runs, {inside_a_save} inside a save, "
        f"{continued} of {done} continued, {torn} torn files, {equal} of {runs} runs equal"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--keep", type=int, nargs="+", default=[1, 2, 3])
    arguments = parser.parse_args()
    for keep in arguments.keep:
        rounds_of_kills(arguments.kills, keep)


if __name__ == "__main__":
    main()

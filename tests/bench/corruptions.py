"""Damages a checkpoint a thousand times and counts how often that is noticed.

python tests/bench/corruptions.py --number 1000
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
from collections import Counter
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import torch

from hookexp.checkpoint.store import CheckpointStore

PAGE = 4096


def damage(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """One of three kinds: a shorter file, a flipped bit, a page of zeros."""
    kind = rng.choice(["truncated", "flipped", "zeroed"])
    if kind == "truncated":
        return kind, data[: rng.randrange(len(data))]
    changed = bytearray(data)
    if kind == "flipped":
        changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        return kind, bytes(changed)
    while bytes(changed) == data:
        first = rng.randrange(len(data)) // PAGE * PAGE
        length = min(PAGE, len(data) - first)
        changed[first : first + length] = bytes(length)
    return kind, bytes(changed)


def count_noticed(number: int, folder: Path) -> tuple[Counter[str], Counter[str]]:
    """How many of each kind were done, and how many gave way to the checkpoint before."""
    store = CheckpointStore(folder)
    generator = torch.Generator().manual_seed(0)
    weights = {"state_dict": {"w": torch.randn(20_000, generator=generator)}}
    store.save(weights, "epoch_1.pth")
    newest = store.save(weights, "epoch_2.pth")
    data = newest.read_bytes()
    rng = random.Random(0)
    done: Counter[str] = Counter()
    noticed: Counter[str] = Counter()
    for _ in range(number):
        kind, damaged = damage(data, rng)
        newest.write_bytes(damaged)
        done[kind] += 1
        noticed[kind] += store.newest() == folder / "epoch_1.pth"
    return done, noticed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--number", type=int, default=1000)
    done, noticed = count_noticed(parser.parse_args().number, Path(tempfile.mkdtemp()))
    for kind, number in done.items():
        print(f"{kind:10} {noticed[kind]} of {number} noticed")


if __name__ == "__main__":
    main()

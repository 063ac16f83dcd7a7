"""What a batch costs to get: from memory, and what seeds add on the way through a DataLoader.

    python tests/bench/loader.py

From memory: the 1,257 digits in batches of 64, against indexing the same tensors by hand. Through
torch's DataLoader (in this process, without workers): samples that are ready, so that what remains
is what seeding Python, NumPy and torch for each sample adds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable

import timing
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hookexp.data.digits import Digits
from hookexp.data.loader import MemoryLoader, WorkerLoader
from hookexp.data.sampler import BatchSampler

BATCH_SIZE = 64
EPOCHS = 10


class Samples(Dataset[tuple[Tensor, Tensor]]):
    """The digits one by one, as a data set of a user's own is."""

    def __init__(self, digits: Digits) -> None:
        self.samples = [digits[index] for index in range(len(digits))]

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.samples[index]


def seconds_of(batches: Callable[[], Iterable[object]]) -> Callable[[], float]:
    """Seconds of an epoch, the least of a few."""

    def measure() -> float:
        best = float("inf")
        for _ in range(EPOCHS):
            began = time.perf_counter()
            for _ in batches():
                pass
            best = min(best, time.perf_counter() - began)
        return best

    return measure


def main() -> None:
    arguments = timing.arguments(__doc__, repeats=15)
    torch.set_num_threads(1)
    digits = Digits("train")
    samples = Samples(digits)

    def sampler() -> BatchSampler:
        return BatchSampler(len(digits), BATCH_SIZE, seed=0, shuffle=True)

    def by_hand() -> Iterable[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(digits))
        for first in range(0, len(order), BATCH_SIZE):
            chosen = order[first : first + BATCH_SIZE]
            yield digits.images[chosen], digits.labels[chosen]

    in_memory = MemoryLoader(digits, sampler())
    plain = DataLoader(samples, batch_size=BATCH_SIZE, shuffle=True)
    seeded = WorkerLoader(samples, sampler())
    best = timing.least(
        {
            "by hand": seconds_of(by_hand),
            "in memory": seconds_of(lambda: in_memory.iterate(0)),
            "DataLoader": seconds_of(lambda: plain),
            "seeded": seconds_of(lambda: seeded.iterate(0)),
        },
        arguments.repeats,
    )
    timing.print_environment()
    per_batch = 1e6 / len(in_memory)
    per_sample = 1e6 / len(digits)
    rows = []
    for name, ours, bare, scale, target in (
        ("in memory, a batch", "in memory", "by hand", per_batch, "20 in all"),
        ("through a DataLoader, a sample", "seeded", "DataLoader", per_sample, "+10"),
    ):
        cost, reference = best[ours] * scale, best[bare] * scale
        beyond, ratio = f"{cost - reference:+.1f}", f"{cost / reference:.2f}"
        rows.append((name, f"{cost:.1f}", f"{reference:.1f}", beyond, ratio, target))
    timing.print_table(("us", "ours", "bare", "beyond", "ratio", "target"), rows)


if __name__ == "__main__":
    main()

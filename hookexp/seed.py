"""Random number generators: seeding all of them, and their states as plain types."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch

GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
"""The kinds of generators that code may keep for itself beside the global ones."""


def seed_everything(seed: int) -> None:
    """Seed Python, NumPy and torch (every device)."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def derive_seed(*parts: int) -> int:
    """A well-mixed 63-bit seed from a few numbers, such as (seed, epoch, position).

    One round of SplitMix64 (Steele, Lea, Flood: Fast splittable pseudorandom number generators,
    2014) for each number, so that neighbouring positions get unrelated generators.
    """
    return _mixed(parts) >> 1


def derive_seeds(parts: Sequence[int], last: range) -> list[int]:
    """`[derive_seed(*parts, n) for n in last]`, all at once: a tenth of the time for many."""
    mixed = np.arange(last.start, last.stop, last.step, dtype=np.uint64)
    mixed += np.uint64((_mixed(parts) + _STEP) & _MASK)
    mixed ^= mixed >> np.uint64(30)
    mixed *= np.uint64(_FIRST_FACTOR)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(_SECOND_FACTOR)
    mixed ^= mixed >> np.uint64(31)
    seeds: list[int] = (mixed >> np.uint64(1)).tolist()
    return seeds


def _mixed(parts: Iterable[int]) -> int:
    mixed = 0
    for part in parts:
        mixed = (mixed + part + _STEP) & _MASK
        mixed = ((mixed ^ (mixed >> 30)) * _FIRST_FACTOR) & _MASK
        mixed = ((mixed ^ (mixed >> 27)) * _SECOND_FACTOR) & _MASK
        mixed ^= mixed >> 31
    return mixed


_MASK = (1 << 64) - 1
_STEP = 0x9E3779B97F4A7C15
_FIRST_FACTOR = 0xBF58476D1CE4E5B9
_SECOND_FACTOR = 0x94D049BB133111EB


def rng_state() -> dict[str, Any]:
    """The states of all generators, as tensors and plain types; of GPUs if any is in use."""
    name, keys, position, has_gauss, cached = np.random.get_state()
    state: dict[str, Any] = {
        "python": random.getstate(),
        "numpy": [
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(cached),
        ],
        "torch": torch.get_rng_state(),
    }
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_rng_state(state: dict[str, Any]) -> None:
    """Put back what `rng_state` returned."""
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"])
    if "cuda" in state and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.set_rng_state_all(state["cuda"])

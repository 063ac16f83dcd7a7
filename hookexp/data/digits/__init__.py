"""Handwritten digits that ship with the package: 1,797 images of 8x8 pixels (see SOURCE.md)."""

from __future__ import annotations

import gzip
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

SPLITS = {"train": slice(0, 1257), "val": slice(1257, 1527), "test": slice(1527, 1797)}
"""Which positions of one fixed permutation of the file's rows belong to each split."""

_FILE = Path(__file__).with_name("digits.csv.gz")
_NUM_COLUMNS = 65
_PERMUTATION_SEED = 0
_BRIGHTEST = 16


class Digits(Dataset[tuple[Tensor, Tensor]]):
    """One split of the digits: images float32 (1, 8, 8) in 0..1 and labels int64 0..9.

    The split is the same on every machine and in every run, whatever the seed.

    Args:
        split: "train" (1,257 images), "val" (270) or "test" (270).

    Raises:
        ValueError: for any other split.
    """

    def __init__(self, split: Literal["train", "val", "test"]) -> None:
        if split not in SPLITS:
            raise ValueError(f"Digits has no split {split!r}: use one of {', '.join(SPLITS)}")
        rows = _shuffled_rows()[SPLITS[split]]
        self.images = rows[:, :-1].reshape(-1, 1, 8, 8).float() / _BRIGHTEST
        self.labels = rows[:, -1].long()

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.images[index], self.labels[index]

    def to(self, device: torch.device) -> Digits:
        """Keep the images and labels on a device."""
        self.images, self.labels = self.images.to(device), self.labels.to(device)
        return self

    def get_batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The collated batch of `indices` (int64, where the data is), without a call per sample.

        Args:
            indices: (batch,) positions within the split.
            generator: the batch's source of randomness; digits are not augmented, so it is unused.

        Returns:
            Images (batch, 1, 8, 8) and labels (batch,).
        """
        # Half the time of `images[indices]`.
        return self.images.index_select(0, indices), self.labels.index_select(0, indices)


@cache
def _shuffled_rows() -> Tensor:
    """All rows of the file, uint8 (1797, 65), in the order that `SPLITS` refers to.

    The file is sorted by writer, so it is shuffled before it is split. `RandomState` is NumPy's
    generator whose stream is frozen (NEP 19): the split never moves with a version.
    """
    with gzip.open(_FILE, "rt", encoding="ascii") as file:
        values = np.array(file.read().replace("\n", ",").rstrip(",").split(","), dtype=np.uint8)
    rows = values.reshape(-1, _NUM_COLUMNS)
    order = np.random.RandomState(_PERMUTATION_SEED).permutation(len(rows))
    return torch.from_numpy(rows[order])

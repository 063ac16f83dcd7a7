"""Which samples form which batch: a pure function of (seed, epoch, position).

So a run can start at any batch without drawing the ones before it, and what a sample's random
augmentation does depends neither on the worker that ran it nor on how many there are.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from hookexp.seed import derive_seed, derive_seeds

_AT_ONCE = 1024
"""Batches that are cut and seeded together, which costs a third of doing it one by one."""


class BatchSampler:
    """The indices of each batch of this rank, with the seed of the batch.

    Args:
        num_samples: length of the data set.
        batch_size: samples per batch and rank.
        seed: seed of the run.
        shuffle: a new order each epoch, else the order of the data set.
        drop_last: leave out a last batch that is not full.
        endless: go on with the next epoch's order instead of ending.
        limit: the most batches of an epoch; None for all.
        rank, world_size: each rank gets its share.
        repeat: whether samples are repeated from the front so that all ranks have as many batches,
            as training needs; else each sample counts once, as in what an evaluation measures.
    """

    def __init__(
        self,
        num_samples: int,
        batch_size: int,
        seed: int,
        shuffle: bool,
        drop_last: bool = False,
        endless: bool = False,
        limit: int | None = None,
        rank: int = 0,
        world_size: int = 1,
        repeat: bool = True,
    ) -> None:
        self.num_samples = num_samples
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.endless = endless
        self.limit = limit
        self.rank = rank
        self.world_size = world_size
        self.repeat = repeat
        self.epoch = 0

    @property
    def num_samples_per_rank(self) -> int:
        if not self.repeat:
            return len(range(self.rank, self.num_samples, self.world_size))
        return -(-self.num_samples // self.world_size)

    @property
    def batches_per_epoch(self) -> int:
        full, rest = divmod(self.num_samples_per_rank, self.batch_size)
        batches = full if self.drop_last or rest == 0 else full + 1
        return batches if self.limit is None else min(batches, self.limit)

    def __len__(self) -> int:
        return self.batches_per_epoch

    def set_epoch(self, epoch: int) -> None:
        """Choose the order; without a call it is that of epoch 0."""
        self.epoch = epoch

    def batches(
        self, start: int = 0, device: torch.device | None = None
    ) -> Iterator[tuple[Tensor, int]]:
        """Indices (int64, shape (batch,)) and seed of each batch, from batch `start` on.

        An endless sampler counts batches over the borders of its epochs.

        Args:
            device: where the indices are, None for the CPU; those of many batches go together, and
                the host does not wait for them.
        """
        per_epoch = self.batches_per_epoch
        rounds, position = divmod(start, per_epoch) if self.endless else (0, start)
        while True:
            epoch = self.epoch + rounds
            order = self._order(epoch)
            for first in range(position, per_epoch, _AT_ONCE):
                end = min(first + _AT_ONCE, per_epoch)
                indices = order[first * self.batch_size : end * self.batch_size]
                if device is not None and device.type == "cuda":
                    indices = indices.pin_memory().to(device, non_blocking=True)
                batches = torch.split(indices, self.batch_size)
                yield from zip(batches, self._seeds(epoch, first, end), strict=True)
            if not self.endless:
                return
            rounds, position = rounds + 1, 0

    def _seeds(self, epoch: int, first: int, end: int) -> list[int]:
        world = self.world_size
        places = range(first * world + self.rank, end * world + self.rank, world)
        return derive_seeds((self.seed, epoch), places)

    def _order(self, epoch: int) -> Tensor:
        if self.shuffle:
            generator = torch.Generator().manual_seed(derive_seed(self.seed, epoch))
            order = torch.randperm(self.num_samples, generator=generator)
        else:
            order = torch.arange(self.num_samples)
        if self.world_size == 1:
            return order
        if not self.repeat:
            return order[self.rank :: self.world_size]
        total = self.num_samples_per_rank * self.world_size
        repeats = -(-total // self.num_samples)
        return order.repeat(repeats)[self.rank : total : self.world_size]

"""A shifted batch against the same shifts made image by image."""

from __future__ import annotations

import torch

from hookexp.data.augment import random_shift


def test_each_image_moves_by_its_own_shift_and_zeros_come_in():
    images = torch.rand(6, 2, 5, 4)
    targets = torch.arange(6)
    shifted, same = random_shift((images, targets), torch.Generator().manual_seed(3), pixels=2)
    shifts = torch.randint(5, (2, 6, 1), generator=torch.Generator().manual_seed(3)).squeeze(-1)
    assert shifts.unique().numel() > 2
    for n in range(6):
        canvas = torch.zeros(2, 9, 8)
        canvas[:, 2:7, 2:6] = images[n]
        row, column = int(shifts[0, n]), int(shifts[1, n])
        assert torch.equal(shifted[n], canvas[:, row : row + 5, column : column + 4])
    assert same is targets and shifted.is_contiguous()


def test_the_same_generator_gives_the_same_shifts():
    batch = torch.rand(8, 1, 8, 8), torch.zeros(8)
    one, two, other = (
        random_shift(batch, torch.Generator().manual_seed(seed))[0] for seed in (1, 1, 2)
    )
    assert torch.equal(one, two) and not torch.equal(one, other)

"""Augmentation of whole batches, on whatever device they are.

python -m hookexp 'data.transform={_target_: hookexp.data.augment.random_shift, _partial_: true}'
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def random_shift(
    batch: tuple[Tensor, Tensor], generator: torch.Generator, pixels: int = 1
) -> tuple[Tensor, Tensor]:
    """Move each image by up to `pixels` in both directions; what comes in from outside is zero.

    Args:
        batch: images (batch, channels, height, width) and their targets.
        generator: on the device of the images; what it draws differs between CPU and GPU.
        pixels: the largest shift, 1 or more.
    """
    images, targets = batch
    size, _, height, width = images.shape
    device = images.device
    shifts = torch.randint(2 * pixels + 1, (2, size, 1), generator=generator, device=device)
    rows = (shifts[0] + torch.arange(height, device=device))[:, :, None]
    columns = (shifts[1] + torch.arange(width, device=device))[:, None, :]
    padded = F.pad(images, (pixels,) * 4).permute(0, 2, 3, 1)
    shifted = padded[torch.arange(size, device=device)[:, None, None], rows, columns]
    return shifted.permute(0, 3, 1, 2).contiguous(), targets

"""A small convolutional net for small images."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class ConvNet(nn.Module):
    """Three 3x3 convolutions with batch norm, two poolings, one linear layer.

    Any image size from 4x4 up works: the last pooling is over whatever area is left.

    Args:
        num_classes: number of logits per image.
        in_channels: channels of the images; 1 is grey.
        width: channels after the first convolution; the later two have twice as many.
        dropout: probability with which a feature is dropped before the linear layer.

    Raises:
        ValueError: for a count that is none.
    """

    def __init__(
        self,
        num_classes: int = 10,
        in_channels: int = 1,
        width: int = 32,
        dropout: float = 0.2,
    ) -> None:
        counts = {"num_classes": num_classes, "in_channels": in_channels, "width": width}
        for name, count in counts.items():
            if not isinstance(count, int) or count < 1:
                raise ValueError(f"{name}={count}: use a whole number, 1 or more")
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(in_channels, width),
            *_convolution(width, 2 * width),
            nn.MaxPool2d(2),
            *_convolution(2 * width, 2 * width),
            MaxPoolTo2x2(),
        )
        self.classifier = nn.Sequential(
            nn.Flatten(), nn.Dropout(dropout), nn.Linear(2 * width * 2 * 2, num_classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Logits (batch, num_classes) of float images (batch, in_channels, height, width)."""
        logits: Tensor = self.classifier(self.features(images))
        return logits


class MaxPoolTo2x2(nn.Module):
    """`nn.AdaptiveMaxPool2d(2)`, which has no deterministic gradient on a GPU (torch 2.13)."""

    def forward(self, images: Tensor) -> Tensor:
        """(batch, channels, 2, 2) of (batch, channels, height, width), both 2 or more."""
        height, width = images.shape[-2:]
        size, stride = (-(-height // 2), -(-width // 2)), (height // 2, width // 2)
        return F.max_pool2d(images, size, stride)


def _convolution(in_channels: int, out_channels: int) -> tuple[nn.Module, ...]:
    # Batch norm shifts its input anyway, so the convolution needs no bias of its own.
    return (
        nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(),
    )

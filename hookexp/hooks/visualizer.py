"""`VisualizerHook`: look at what the model sees and says."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from hookexp.hook import Batch, Hook, Mode, Priority
from hookexp.numeric import require_whole

if TYPE_CHECKING:
    from hookexp.runner import Runner

MIN_SIDE, MAX_SIDE = 96, 256
"""Pixels of an input's longer side in the grid; what is smaller or larger is scaled."""
GAP, LINE_HEIGHT, FONT_SIZE = 8, 15, 12
BACKGROUND, TEXT, RIGHT, WRONG = (24, 24, 27), (228, 228, 231), (74, 222, 128), (248, 113, 113)


class VisualizerHook(Hook):
    """Draws the first inputs of an evaluation as a grid, each with its target and prediction.

    A predicted class is green where it is the target and red where it is not. The grid goes into
    `visualizer/val_iter_<N>.png` (or `test_iter_<N>.png`) of the run's folder, and to the sinks.

    Data are pairs (inputs, targets), and inputs images (batch, channels, height, width) with 1 or
    3 channels: uint8, floats within 0..1, or any floats, which are stretched from an image's
    smallest to its largest. Predictions are `outputs["predictions"]`; scores (batch, classes)
    stand for the class of the greatest. If the data set has `classes`, those are the names;
    a number beyond them, as of what is ignored, stands for itself. Other data cannot be drawn,
    which is said once.

        python -m hookexp hooks=+visualizer hooks.visualizer.max_images=64

    Args:
        interval: validations between two grids; a test is always drawn.
        draw_gt: write the target below each input.
        draw_pred: write the prediction below each input.
        max_images: inputs in a grid at most.

    Raises:
        ValueError: for an interval or max_images below 1.
    """

    priority = Priority.LOWEST

    def __init__(
        self, interval: int = 1, draw_gt: bool = True, draw_pred: bool = True, max_images: int = 16
    ) -> None:
        require_whole("interval", interval)
        require_whole("max_images", max_images)
        self.interval = interval
        self.draw_gt = draw_gt
        self.draw_pred = draw_pred
        self.max_images = max_images
        self._num_validations = 0
        self._tiles: list[Image.Image] = []
        self._has_warned = False

    def after_val_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        if (self._num_validations + 1) % self.interval == 0:
            self._draw(runner, data_batch, outputs or {}, runner.val_dataloader)

    def after_test_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        self._draw(runner, data_batch, outputs or {}, runner.test_dataloader)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._num_validations += 1
        self._publish(runner, "val")

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._publish(runner, "test")

    def state_dict(self) -> dict[str, Any]:
        return {"num_validations": self._num_validations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._num_validations = state["num_validations"]

    def _draw(self, runner: Runner, batch: Batch, outputs: dict[str, Any], loader: Any) -> None:
        """Draw as many inputs of a batch as the grid has room for."""
        num = self.max_images - len(self._tiles)
        if num == 0 or runner.rank != 0 or self._has_warned:
            return
        is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        inputs, targets = batch if is_pair else (batch, None)
        if not _is_drawable(inputs):
            self._warn(runner, inputs)
            return
        names = getattr(getattr(loader, "dataset", None), "classes", None)
        wanted = _in_words(targets, num, names)
        said = _in_words(outputs.get("predictions"), num, names)
        has_classes = isinstance(targets, Tensor) and not targets.is_floating_point()
        for n, pixels in enumerate(_to_uint8(inputs[:num])):
            target, prediction = wanted[n] if wanted else "", said[n] if said else ""
            lines = []
            if self.draw_gt and target:
                lines.append((f"target {target}", TEXT))
            if self.draw_pred and prediction:
                color = RIGHT if prediction == target else WRONG
                lines.append((f"predicted {prediction}", color if has_classes else TEXT))
            self._tiles.append(_tile(pixels, lines))

    def _warn(self, runner: Runner, inputs: Any) -> None:
        self._has_warned = True
        kind = f"shape {tuple(inputs.shape)}" if isinstance(inputs, Tensor) else type(inputs)
        runner.logger.warning(
            "hook 'visualizer': inputs of %s cannot be drawn; it takes images (batch, channels, "
            "height, width) with 1 or 3 channels. To do without it: hooks=-visualizer",
            kind,
        )

    def _publish(self, runner: Runner, mode: Mode) -> None:
        tiles, self._tiles = self._tiles, []
        if not tiles:
            return
        grid = _grid(tiles)
        suffix = runner.hooks.suffix_of(self)
        path = runner.work_dir / "visualizer" / f"{mode}_iter_{runner.iter}{suffix}.png"
        path.parent.mkdir(exist_ok=True)
        grid.save(path)
        pixels = torch.from_numpy(np.array(grid)).permute(2, 0, 1).contiguous()
        runner.message_hub.post_image(f"visualizer/{mode}{suffix}", pixels)


def _is_drawable(inputs: Any) -> bool:
    return isinstance(inputs, Tensor) and inputs.dim() == 4 and inputs.shape[1] in (1, 3)


def _in_words(values: Any, num: int, names: Sequence[str] | None) -> list[str]:
    """The first values (batch,), (batch, 1) or scores (batch, classes) as text; [] for others."""
    if not isinstance(values, Tensor) or values.dim() not in (1, 2):
        return []
    values = values[:num].detach().cpu()
    if values.dim() == 2:
        values = values[:, 0] if values.shape[1] == 1 else values.argmax(1)
    if values.is_floating_point():
        return [f"{value:.3g}" for value in values.tolist()]
    named = dict(enumerate(() if names is None else names))
    return [str(named.get(value, value)) for value in values.tolist()]


def _to_uint8(images: Tensor) -> Tensor:
    """Images (batch, channels, height, width) as uint8 (batch, height, width, 3) on the CPU."""
    images = images.detach().cpu()
    if images.dtype != torch.uint8:
        images = images.float()
        low, high = images.amin((1, 2, 3), keepdim=True), images.amax((1, 2, 3), keepdim=True)
        is_scaled = (low < 0) | (high > 1)
        stretched = (images - low) / (high - low).clamp_min(1e-12)
        images = torch.where(is_scaled, stretched, images).nan_to_num(0.0).mul(255).round().byte()
    return images.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)


def _tile(pixels: Tensor, lines: Sequence[tuple[str, tuple[int, int, int]]]) -> Image.Image:
    """One input with its lines of text below it."""
    picture = Image.fromarray(pixels.contiguous().numpy())
    longer = max(picture.size)
    if longer > MAX_SIDE:
        picture.thumbnail((MAX_SIDE, MAX_SIDE))
    elif longer < MIN_SIDE:
        factor = MIN_SIDE // longer
        size = (picture.width * factor, picture.height * factor)
        picture = picture.resize(size, Image.Resampling.NEAREST)
    size = (max(picture.width, MIN_SIDE), picture.height + LINE_HEIGHT * len(lines))
    tile = Image.new("RGB", size, BACKGROUND)
    tile.paste(picture, (0, 0))
    draw, font = ImageDraw.Draw(tile), ImageFont.load_default(FONT_SIZE)
    for n, (text, color) in enumerate(lines):
        draw.text((0, picture.height + LINE_HEIGHT * n), text, fill=color, font=font)
    return tile


def _grid(tiles: Sequence[Image.Image]) -> Image.Image:
    width, height = max(t.width for t in tiles) + GAP, max(t.height for t in tiles) + GAP
    columns = math.ceil(math.sqrt(len(tiles)))
    rows = math.ceil(len(tiles) / columns)
    grid = Image.new("RGB", (columns * width + GAP, rows * height + GAP), BACKGROUND)
    for n, tile in enumerate(tiles):
        grid.paste(tile, (GAP + n % columns * width, GAP + n // columns * height))
    return grid

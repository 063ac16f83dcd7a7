"""The curve of a learning rate search: smoothed, read, and drawn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from PIL.Image import Image

SIZE = (960, 600)
MARGIN = (90, 60, 30, 70)
"""Left, top, right, bottom; in pixels, as `SIZE`."""
_FINER = 2
"""Drawn this many times larger and shrunk, which makes smooth lines."""
_INK, _GRID, _POINTS, _CURVE, _MARK = "#303030", "#e4e4e4", "#b9c7dd", "#1f5fbf", "#c8371f"


def smooth(losses: Sequence[float], share: float) -> list[float]:
    """An exponential average in which a new value has `share`, corrected for its start at zero.

    (The correction is that of Adam's moments: Kingma and Ba 2015, arXiv:1412.6980, section 3.)
    """
    smoothed = []
    average = 0.0
    for count, loss in enumerate(losses, start=1):
        average += share * (loss - average)
        smoothed.append(average / (1 - (1 - share) ** count) if share < 1 else average)
    return smoothed


def smooth_both_ways(losses: Sequence[float], share: float) -> list[float]:
    """As `smooth`, there and back again, so that the curve does not lag behind its points."""
    return smooth(smooth(losses, share)[::-1], share)[::-1]


def steepest(lrs: Sequence[float], smoothed: Sequence[float]) -> float | None:
    """The learning rate at which the curve falls fastest per decade, before its lowest point.

    The first tenth is left out, where the average is of few values. None if the curve never falls.
    """
    first, lowest = len(lrs) // 10, int(np.argmin(smoothed)) if smoothed else 0
    if lowest <= first:
        return None
    slopes = np.gradient(np.asarray(smoothed), np.log10(np.asarray(lrs)))
    return float(lrs[first + int(np.argmin(slopes[first : lowest + 1]))])


def draw(
    lrs: Sequence[float],
    losses: Sequence[float],
    smoothed: Sequence[float],
    suggestion: float | None,
) -> Image:
    """Losses as points, smoothed as a line, the suggestion as a mark, over a logarithmic lr.

    The losses are finite; those above the curve's range stand at its upper edge.
    """
    from PIL import Image, ImageDraw, ImageFont

    width, height = (_FINER * pixels for pixels in SIZE)
    left, top, right, bottom = (_FINER * pixels for pixels in MARGIN)
    image = Image.new("RGB", (width, height), "white")
    pen = ImageDraw.Draw(image)
    font = ImageFont.load_default(16 * _FINER)
    low, high = _range_of(losses, smoothed)
    decades = (math.log10(lrs[0]), math.log10(lrs[-1])) if len(lrs) > 1 else (-8.0, 1.0)

    def x_of(lr: float) -> float:
        share = (math.log10(lr) - decades[0]) / (decades[1] - decades[0])
        return left + share * (width - left - right)

    def y_of(loss: float) -> float:
        share = (min(max(loss, low), high) - low) / (high - low)
        return height - bottom - share * (height - top - bottom)

    for decade in range(math.ceil(decades[0] - 1e-9), math.floor(decades[1] + 1e-9) + 1):
        x = x_of(10.0**decade)
        pen.line((x, top, x, height - bottom), _GRID, _FINER)
        pen.text((x, height - bottom + 8 * _FINER), f"1e{decade}", _INK, font, "ma")
    for tick in _ticks(low, high):
        y = y_of(tick)
        pen.line((left, y, width - right, y), _GRID, _FINER)
        pen.text((left - 8 * _FINER, y), f"{tick:.4g}", _INK, font, "rm")
    pen.rectangle((left, top, width - right, height - bottom), outline=_INK, width=_FINER)
    pen.text((width / 2, height - 10 * _FINER), "learning rate", _INK, font, "md")
    pen.text((left, top - 12 * _FINER), "loss (points) and smoothed loss (line)", _INK, font, "ls")
    radius = 2.5 * _FINER
    for lr, loss in zip(lrs, losses, strict=True):
        x, y = x_of(lr), y_of(loss)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), _POINTS)
    curve = [(x_of(lr), y_of(loss)) for lr, loss in zip(lrs, smoothed, strict=True)]
    if len(curve) > 1:
        pen.line(curve, _CURVE, 3 * _FINER, "curve")
    if suggestion is not None:
        x, y = x_of(suggestion), y_of(float(np.interp(suggestion, lrs, smoothed)))
        radius = 6 * _FINER
        pen.line((x, top, x, height - bottom), _MARK, _FINER)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), _MARK)
        on_left = x > width / 2
        place = (x - 10 * _FINER, "rt") if on_left else (x + 10 * _FINER, "lt")
        pen.text(
            (place[0], top + 10 * _FINER), f"steepest: {suggestion:.2g}", _MARK, font, place[1]
        )
    return image.resize(SIZE, Image.Resampling.LANCZOS)


def _range_of(losses: Sequence[float], smoothed: Sequence[float]) -> tuple[float, float]:
    """From the lowest point to the highest of the curve, with a little room."""
    low, high = min([*losses, *smoothed], default=0.0), max(smoothed, default=0.0)
    room = 0.06 * (high - low) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """About five round numbers between two."""
    rough = (high - low) / 5
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * n for n in (1, 2, 5, 10) if power * n >= rough)
    first = math.ceil(low / step)
    return [n * step for n in range(first, math.floor(high / step) + 1)]

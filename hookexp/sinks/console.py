"""`ConsoleSink`: the numbers of a run on the screen, and as lines in its log file."""

from __future__ import annotations

import math
import os
import random
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import TYPE_CHECKING

from hookexp.log import FILE_ONLY
from hookexp.sink import LogPoint, Sink

if TYPE_CHECKING:
    import logging

    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.live import Live

    from hookexp.runner import Runner

MIN_BAR_WIDTH, MAX_BAR_WIDTH = 8, 30
ROOM_FOR_CTRL_C = 3
"""Columns left free on the right: a terminal echoes `^C` there. In the last column the echo would
go to the next line, and the redraw would leave a copy of the progress line behind."""


TIMINGS = ("data_time", "time")

FIRST_KEYS = ("eta", "time", "data_time", "memory")
"""What a line of text on training says first, after the learning rates."""


class ConsoleSink(Sink):
    """In a terminal a progress line that is redrawn in place, elsewhere a line per log point.

    The progress line spans the whole run; a validation shows its own progress in its place and
    leaves one line with its result. There is no thread: the line is redrawn when a row arrives, at
    most `refresh_per_second` times a second. Messages and prints from elsewhere appear above it.
    The log file gets every line in both cases.

    `sinks=+console`, `sinks.console.live=false`

    Args:
        live: whether to draw the progress line; None does so when the output is a terminal.
        refresh_per_second: upper bound of redraws per second.
    """

    def __init__(self, live: bool | None = None, refresh_per_second: float = 5.0) -> None:
        if not refresh_per_second > 0:
            raise ValueError(
                f"sinks.console.refresh_per_second={refresh_per_second}: has to be above 0"
            )
        self.live = live
        self.refresh_per_second = refresh_per_second
        self._display: Live | None = None

    def open(self, runner: Runner) -> None:
        self._runner = runner
        self._logger: logging.Logger = runner.logger
        self._max_epochs = runner.max_epochs if runner.by_epoch else None
        self._max_iters = runner.max_iters
        self._by_epoch = runner.by_epoch
        self._next_redraw = 0.0
        if _is_terminal() if self.live is None else self.live:
            self._line = ProgressLine(self._by_epoch, self._max_epochs, self._max_iters)
            self._display = _make_display(self._line)

    def log_scalars(self, scalars: Mapping[str, float], step: int, point: LogPoint) -> None:
        if point.is_result:
            # A result is one line of 80 columns; its timings are in scalars.jsonl.
            scalars = {name: value for name, value in scalars.items() if name not in TIMINGS}
        row = format_row(scalars, point, self._by_epoch, self._max_iters)
        if self._display is None:
            self._logger.info(row)
            return
        self._line.show(scalars, point)
        self._logger.info(row, extra=None if point.is_result else FILE_ONLY)
        self._redraw(self._display)

    def close(self) -> None:
        """Draw the last row, moved on to where the run has come, and give the terminal back."""
        if self._display is not None:
            self._line.advance(self._runner.iter)
            display, self._display = self._display, None
            display.stop()

    def _redraw(self, display: Live) -> None:
        now = time.monotonic()
        if now < self._next_redraw:
            return
        self._next_redraw = now + 1.0 / self.refresh_per_second
        if not display.is_started:
            display.start()
            # Live hides the cursor, and a run that is killed could not bring it back.
            display.console.show_cursor(True)
        display.refresh()


class ProgressLine:
    """What `rich` draws: one line, as much of it as the terminal is wide."""

    def __init__(self, by_epoch: bool, max_epochs: int | None, max_iters: int | None) -> None:
        self._by_epoch = by_epoch
        self._max_epochs = max_epochs
        self._max_iters = max_iters
        self._train_row: tuple[Mapping[str, float], LogPoint] | None = None
        self._row: tuple[Mapping[str, float], LogPoint] | None = None

    def show(self, scalars: Mapping[str, float], point: LogPoint) -> None:
        """Make a row the one to be drawn; after the result of an evaluation training is."""
        row = scalars, point
        if point.mode == "train":
            self._train_row = row
        self._row = self._train_row if point.is_result else row
        if point.is_result:
            self.advance(point.iter)

    def advance(self, iteration: int) -> None:
        """Move a row of training on to a later iteration of its epoch, of which no row may tell."""
        if self._row is None or self._row is not self._train_row:
            return
        scalars, point = self._row
        moved = iteration - point.iter
        if moved <= 0 or (self._by_epoch and point.batch + moved > (point.num_batches or math.inf)):
            return
        scalars = {name: value for name, value in scalars.items() if name != "eta"}
        point = replace(point, iter=iteration, batch=point.batch + moved)
        self._row = self._train_row = scalars, point

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        from rich.text import Text

        if self._row is None:
            return
        text = Text(no_wrap=True, overflow="crop", end="")
        width = options.max_width - ROOM_FOR_CTRL_C
        for string, style in self._parts(*self._row, width, "#-" if options.ascii_only else "━─"):
            text.append(string, style)
        text.truncate(width)
        yield text

    def _parts(
        self, scalars: Mapping[str, float], point: LogPoint, width: int, bar_chars: str
    ) -> list[tuple[str, str]]:
        """Strings and their styles, in order; of the numbers only those that fit."""
        fraction = self._fraction(point)
        parts = {"position": self._position(point)}
        left = width - len(parts["position"])
        wanted = _figures(scalars)
        if fraction is not None:
            wanted = {"percent": f" {fraction:4.0%}", "bar": "  " + " " * MIN_BAR_WIDTH, **wanted}
        for name in ("percent", "loss", "eta", "bar", "lr", "speed"):
            if name in wanted and len(wanted[name]) <= left:
                parts[name] = wanted[name]
                left -= len(wanted[name])
        line: list[tuple[str, str]] = [(parts["position"], "bold")]
        if fraction is not None and "bar" in parts:
            bar_width = min(MIN_BAR_WIDTH + left, MAX_BAR_WIDTH)
            done = math.floor(fraction * bar_width)
            line.append(("  " + bar_chars[0] * done, "green"))
            line.append((bar_chars[1] * (bar_width - done), "dim"))
        line += [(parts[n], "") for n in ("percent", "loss", "lr", "speed", "eta") if n in parts]
        return line

    def _position(self, point: LogPoint) -> str:
        evaluation = f"{point.mode} {point.batch}{_of(point.num_batches)}"
        if point.mode == "test":
            return evaluation
        if self._by_epoch:
            position = f"epoch {point.epoch}{_of(self._max_epochs)}"
        else:
            position = f"iter {point.iter}{_of(self._max_iters)}"
        return position if point.mode == "train" else f"{position}  {evaluation}"

    def _fraction(self, point: LogPoint) -> float | None:
        """How much of the run is done, or of the evaluation; None if nobody knows."""
        if point.mode != "train" or (self._by_epoch and self._max_epochs):
            if not point.num_batches:
                return None
            fraction = point.batch / point.num_batches
            if point.mode == "train" and self._max_epochs:
                fraction = (point.epoch - 1 + fraction) / self._max_epochs
        elif self._max_iters:
            fraction = point.iter / self._max_iters
        else:
            return None
        return min(fraction, 1.0)


def format_row(
    scalars: Mapping[str, float], point: LogPoint, by_epoch: bool, max_iters: int | None
) -> str:
    """One row as a line of text, in the layout that published logs have.

    `Epoch(train) [1][10/57]  lr: 1.0000e-02  eta: 0:00:12  time: 0.0123  loss: 0.1234`, in a run by
    iterations `Iter(train) [10/500]  …`. An evaluation has its own count of batches after the epoch
    or the iteration it was made at, `Iter(val) [200][5/5]  …`; a test has that count alone. A
    result keeps the order it comes in, its metrics first.
    """
    batch = f"[{point.batch}/{'?' if point.num_batches is None else point.num_batches}]"
    if point.mode == "test":
        place = batch
    elif by_epoch:
        place = f"[{point.epoch}]{batch}"
    elif point.mode == "train":
        place = f"[{point.iter}/{'?' if max_iters is None else max_iters}]"
    else:
        place = f"[{point.iter}]{batch}"
    keys = tuple(scalars) if point.is_result else _in_order(tuple(scalars))
    values = [f"{key}: {_format_value(key, scalars[key])}" for key in keys]
    return "  ".join([f"{'Epoch' if by_epoch else 'Iter'}({point.mode}) {place}", *values])


@lru_cache(maxsize=16)
def _in_order(keys: tuple[str, ...]) -> tuple[str, ...]:
    """The names of a row as a line has them: the learning rates, `FIRST_KEYS`, then the others."""
    first = [*filter(_is_lr, keys), *(key for key in FIRST_KEYS if key in keys)]
    return (*first, *(key for key in keys if key not in first))


def _is_lr(key: str) -> bool:
    return key == "lr" or key.startswith("lr/")


def _format_value(key: str, value: float) -> str:
    if key == "eta":
        return _format_seconds(value)
    if key == "memory" and math.isfinite(value):
        return f"{value:.0f}"
    is_small = 0.0 < abs(value) < 1e-3 and key not in FIRST_KEYS
    if _is_lr(key) or is_small:
        return f"{value:.4e}"
    return f"{value:.4f}"


def _format_seconds(seconds: float) -> str:
    """As h:mm:ss."""
    if not math.isfinite(seconds):
        return "?"
    minutes, seconds = divmod(max(round(seconds), 0), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"


def _figures(scalars: Mapping[str, float]) -> dict[str, str]:
    """The numbers that the progress line has room for, as it shows them."""
    figures = {}
    if "loss" in scalars:
        figures["loss"] = f"  loss {_format_value('loss', scalars['loss'])}"
    lr = next((value for key, value in scalars.items() if _is_lr(key)), None)
    if lr is not None:
        figures["lr"] = f"  lr {lr:.1e}"
    seconds = scalars.get("time", 0.0)
    if seconds > 0.0:
        slow = seconds > 1.0
        figures["speed"] = f"  {seconds:.1f} s/it" if slow else f"  {1.0 / seconds:.1f} it/s"
    if "eta" in scalars:
        figures["eta"] = f"  eta {_format_seconds(scalars['eta'])}"
    return figures


def _of(total: int | None) -> str:
    return "" if total is None else f"/{total}"


def _is_terminal() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _make_display(line: ProgressLine) -> Live:
    # rich draws from Python's generator when it is imported (rich 15), and that one is the run's.
    generator = random.getstate()
    from rich.console import Console
    from rich.live import Live

    random.setstate(generator)
    return Live(
        line,
        console=Console(),
        auto_refresh=False,
        # In a file of its own (`2> errors.txt`) stderr cannot tear the line, and stays there.
        redirect_stderr=sys.stderr.isatty(),
    )

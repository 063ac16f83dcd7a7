"""`JsonlSink`: the numbers of a run as `scalars.jsonl`, one JSON object per log point."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hookexp.append_file import AppendFile
from hookexp.sink import LogPoint, Sink

if TYPE_CHECKING:
    from hookexp.runner import Runner


class JsonlSink(Sink):
    """Appends rows such as `{"mode": "train", "epoch": 1, "step": 10, "loss": 0.5, "lr": 0.1}`.

    `step` counts training iterations in rows of every mode, whatever the x axis elsewhere is. A
    scalar named `mode`, `epoch` or `step` is left out: these three say where a row was measured.
    JSON has no infinity and no NaN; they are the strings `"Infinity"`, `"-Infinity"` and `"NaN"`,
    which `float()` reads back. Each row is one unbuffered write: a killed run loses none of them.
    Every row is a log point: images, files and the config are elsewhere in the run's folder.

    `sinks=+jsonl`, `sinks.jsonl.filename=numbers.jsonl`

    Args:
        filename: the file's name inside the run's folder.

    Raises:
        ValueError: for a name with a folder in it, which may lead elsewhere.
    """

    def __init__(self, filename: str = "scalars.jsonl") -> None:
        if Path(filename).name != filename or filename in ("", "..") or "\\" in filename:
            raise ValueError(
                f"sinks.jsonl.filename={filename}: use a plain file name, such as scalars.jsonl, "
                "and no folder in it"
            )
        self.filename = filename
        self._file: AppendFile | None = None
        self._encode = json.JSONEncoder(allow_nan=False).encode

    def open(self, runner: Runner) -> None:
        self._file = AppendFile(runner.work_dir / self.filename)

    def log_scalars(self, scalars: Mapping[str, float], step: int, point: LogPoint) -> None:
        if point.is_progress:
            return
        place = {"mode": point.mode, "epoch": point.epoch, "step": point.iter}
        row = {**place, **scalars, **place}
        try:
            text = self._encode(row)
        except ValueError:
            text = self._encode({key: _finite_or_name(value) for key, value in row.items()})
        self._opened().append(f"{text}\n".encode())

    def flush(self) -> None:
        self._opened().flush()

    def state_dict(self) -> dict[str, Any]:
        return {"position": self._opened().position}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._opened().cut(state["position"])

    def start_over(self) -> None:
        self._opened().cut(0)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _opened(self) -> AppendFile:
        assert self._file is not None, "the sink is not open"
        return self._file


def _finite_or_name(value: str | float) -> str | float:
    if isinstance(value, str) or math.isfinite(value):
        return value
    if math.isnan(value):
        return "NaN"
    return "Infinity" if value > 0 else "-Infinity"

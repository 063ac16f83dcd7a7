"""The `Sink`: a place where the numbers of a run go. Only the logger hook calls sinks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from hookexp.hook import Mode
    from hookexp.runner import Runner


@dataclass(frozen=True)
class LogPoint:
    """Where in a run a row of scalars was measured."""

    mode: Mode
    epoch: int
    """1-based number of the epoch the row belongs to."""
    iter: int
    """Training iterations finished, the current one included."""
    batch: int
    """1-based position within this epoch or evaluation."""
    num_batches: int | None
    """Batches of this epoch or evaluation; None if nobody knows."""
    is_result: bool = False
    """Whether the row holds the metrics of a whole evaluation, not the state at one batch."""

    @property
    def is_progress(self) -> bool:
        """Whether the row only says how far an evaluation is: worth showing, not keeping."""
        return self.mode != "train" and not self.is_result


class Sink:
    """Base class of sinks. Override what the sink can take; the rest is ignored.

    A constructor takes plain values and imports nothing heavy: what a sink needs is imported and
    opened in `open`. A sink may raise: the run warns once, names the sink, and goes on. Sinks live
    on rank 0 only.
    """

    def open(self, runner: Runner) -> None:
        """Called once before anything is logged."""

    def log_config(self, config: Mapping[str, Any]) -> None:
        """The composed config of the run, as plain dicts and lists, secrets masked."""

    def log_scalars(self, scalars: Mapping[str, float], step: int, point: LogPoint) -> None:
        """One row of numbers by plain name (`loss`, `lr`, `accuracy`); `step` is the x axis.

        A number may be infinite or NaN: a sink writes it as its format can, and does not raise.
        A sink that keeps what it is given leaves rows out that are `point.is_progress`.
        """

    def log_image(self, name: str, image: Tensor, step: int) -> None:
        """An image, uint8 of shape (3, height, width)."""

    def log_artifact(self, name: str, path: Path, step: int) -> None:
        """A file the run has written inside its folder."""

    def flush(self) -> None:
        """Put on the disk what was logged. Called from another thread, before a checkpoint."""

    def state_dict(self) -> dict[str, Any]:
        """Where the log stands, in plain types; saved with each checkpoint."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on where the log stood: what came after it will be logged again."""

    def start_over(self) -> None:
        """Forget what a killed run logged that left no checkpoint: all of it comes again."""

    def close(self) -> None:
        """Write out what is pending. Called once after `open`, also when that failed half-way."""

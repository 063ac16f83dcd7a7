"""Ends a run in time, cleanly: the last state is saved, and a resume goes on from there.

python -m hookexp hooks=+time_limit hooks.time_limit.minutes=55
"""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

from hookexp.hook import Batch, Hook, Mode, Priority
from hookexp.runner import Runner

STAT_FILE = Path("/proc/self/stat")


class TimeLimitHook(Hook):
    """A job that a scheduler kills loses what it did since its last checkpoint.

    Past the limit the run stops at its next safe point, after the batch it is at; a validation
    that is due is left to the run that resumes it. Leave room for the checkpoint: the limit is
    when the stop begins. A resumed run has its whole time again.

    Args:
        minutes: how long the run may take.
        since: `run`, from the beginning of the run; or `process`, from the start of the program,
            with its imports and the loading of data, which is what a scheduler counts. Jobs of a
            sweep share a program, so there `process` limits all of them together.

    Raises:
        ValueError: for minutes that are not above 0, or another `since`.
    """

    priority = Priority.LOW

    def __init__(self, minutes: float, since: str = "run") -> None:
        if not minutes > 0:
            raise ValueError(f"minutes={minutes}: use a number above 0")
        if since not in ("run", "process"):
            raise ValueError(f"since={since}: use run or process")
        self.minutes = minutes
        self.since = since
        self._began = 0.0

    def before_run(self, runner: Runner) -> None:
        age = _process_age() if self.since == "process" else 0.0
        self._began = time.monotonic() - age

    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
        mode: Mode = "train",
    ) -> None:
        if runner.mode != "train" or runner.state.stop_reason:
            return
        minutes = (time.monotonic() - self._began) / 60
        if minutes >= self.minutes:
            runner.state.stop_urgently(
                f"time limit: {minutes:.1f} of {self.minutes:g} minutes have passed"
            )


def _process_age() -> float:
    """Seconds since this process was started.

    Linux counts it in ticks since boot. Elsewhere it is taken for the processor time that was
    used so far.
    """
    try:
        fields = STAT_FILE.read_text(encoding="utf-8").rpartition(")")[2].split()
        began = int(fields[19]) / os.sysconf("SC_CLK_TCK")
        return time.clock_gettime(time.CLOCK_BOOTTIME) - began
    except (OSError, AttributeError):
        return time.process_time()

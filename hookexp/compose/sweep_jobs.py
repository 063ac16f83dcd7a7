"""What the jobs of a sweep have left in their folders.

Hydra drops what jobs return, and calls nobody when one has failed; the files are there in any
case, also where jobs ran in other processes.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import yaml
from omegaconf import OmegaConf

SUMMARY_FILE = "summary.json"
_ENDING = ".ending"
_POINTER = "last_checkpoint"
_WORDS = ".hydra/overrides.yaml"
_FASTEST_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Job:
    """One run of a sweep, as its files tell it."""

    number: int
    folder: Path
    overrides: dict[str, str]
    summary: dict[str, Any] = field(default_factory=dict)

    @property
    def status(self) -> str:
        return str(self.summary.get("status", "no result"))

    @property
    def objective(self) -> dict[str, Any]:
        return self.summary.get("objective") or {}

    @property
    def value(self) -> float | None:
        return number_or_none(self.objective.get("value"))

    @property
    def result(self) -> dict[str, Any]:
        """The objective; where no metric tells its direction, the first one at the end."""
        name = next(iter(self.summary.get("metrics", {})), None)
        if self.objective or name is None:
            return self.objective
        return {**self.summary, "name": name, "value": self.summary["metrics"][name]}


Stamp = tuple[int, int]
"""What tells a file from one that was written later: when it was, and which one it is."""


def stamps_in(folder: Path) -> dict[Path, Stamp]:
    """The files of the jobs that are there. Clocks, which differ between machines, do not tell."""
    files = [file for name in (_WORDS, SUMMARY_FILE) for file in folder.glob(f"*/{name}")]
    return {file: _stamp(file) for file in files}


def _stamp(file: Path) -> Stamp:
    try:
        status = file.stat()
    except OSError:  # Another process has just removed it.
        return 0, 0
    return status.st_mtime_ns, status.st_ino


def read_jobs(folder: Path, before: Mapping[Path, Stamp] = MappingProxyType({})) -> list[Job]:
    """The jobs in a sweep's folder that began when there were those files."""
    jobs: list[Job] = []
    for file in folder.glob(f"*/{_WORDS}"):
        if before.get(file) == _stamp(file):
            continue
        words = [str(word).partition("=") for word in OmegaConf.load(file)]
        overrides = {key: value for key, _, value in words}
        jobs.append(
            Job(
                number=_number_of(file.parent.parent, len(jobs)),
                folder=file.parent.parent,
                overrides=overrides,
                summary=_read_summary(
                    file.parent.parent / SUMMARY_FILE, before, overrides.get("resume") == "auto"
                ),
            )
        )
    return sorted(jobs, key=lambda job: job.number)


def _number_of(folder: Path, otherwise: int) -> int:
    """A job's number in this sweep; its folder may have the number it had when it was trained."""
    file = folder / ".hydra" / "hydra.yaml"
    if file.is_file():
        saved = yaml.load(file.read_text(encoding="utf-8"), _FASTEST_LOADER)
        return int(saved["hydra"]["job"]["num"])
    number = re.match(r"\d+", folder.name)
    return int(number.group()) if number else otherwise


def best_of(jobs: Sequence[Job]) -> Job | None:
    """The job with the best objective, among those with the same one as the first."""
    names = [job.objective.get("name") for job in jobs if job.value is not None]
    rivals = [j for j in jobs if j.value is not None and j.objective.get("name") == names[0]]
    if not rivals:
        return None
    sign = -1.0 if rivals[0].objective.get("rule") == "less" else 1.0
    return max(rivals, key=lambda job: sign * (job.value or 0.0))


def write_status(folder: Path, mode: str, status: dict[str, Any]) -> None:
    """Leave a summary of what has no result but this; beside that of a training run, if any."""
    is_beside = mode != "train" and (folder / _POINTER).exists()
    name = f"summary_{mode}.json" if is_beside else SUMMARY_FILE
    text = json.dumps({"objective": None, "metrics": {}, **status}, indent=2)
    temporary = folder / f".{name}.tmp"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        temporary.write_text(text + "\n", encoding="utf-8")
        temporary.replace(folder / name)
    except OSError:  # A full disk, most likely, which is what the error was about.
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _read_summary(file: Path, before: Mapping[Path, Stamp], was_resumed: bool) -> dict[str, Any]:
    """What a job left; an older one counts where the job only had to see that the run was over."""
    if not file.is_file():
        return {}
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    if not isinstance(content, dict):
        return {}
    if file.with_name(_ENDING).exists() and content.get("status") != "failed":
        return {}  # Killed in what hooks do after a run, which a resume will do.
    is_new = before.get(file) != _stamp(file)
    return content if is_new or (was_resumed and content.get("is_final")) else {}


def number_or_none(value: Any) -> float | None:
    """A number; None for what is none, be it by its value."""
    return None if value is None or math.isnan(value) else float(value)

"""The table at the end of a sweep, of what its jobs left in their folders."""

from __future__ import annotations

import errno
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from hookexp.compose.folders import unwritable
from hookexp.compose.secrets import mask_file
from hookexp.compose.sweep_jobs import (
    Job,
    Stamp,
    best_of,
    number_or_none,
    read_jobs,
    stamps_in,
    write_status,
)
from hookexp.errors import ConfigError
from hookexp.monitor import infer_rule

_OF_A_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EACCES, errno.EPERM)


@dataclass(frozen=True)
class _Sweep:
    folder: Path
    before: Mapping[Path, Stamp]
    told: set[Path] = field(default_factory=set)
    """Folders of the jobs whose failure this process has told when it happened."""


_running: list[_Sweep] = []


def begin(cfg: DictConfig) -> None:
    """Remember a sweep's folder; `end` shows its table."""
    folder = Path(str(cfg.hydra.sweep.dir)).absolute()
    _running[:] = [_Sweep(folder, stamps_in(folder))]


def unwritable_folder(error: OSError) -> ConfigError | None:
    """What to raise where the folder of this sweep took no file of Hydra's own; else None."""
    if not _running or error.errno not in _OF_A_DISK:
        return None
    return unwritable("hydra.sweep.dir", _running[0].folder, error)


def hide_secrets() -> None:
    """Mask what Hydra has written of the sweep of this process; a killed one leaves it behind."""
    for sweep in _running:
        mask_file(sweep.folder / "multirun.yaml")


def end() -> None:
    """Print the table of the sweep that `begin` announced, if there was one."""
    if not _running:
        return
    hide_secrets()
    sweep = _running.pop()
    jobs = read_jobs(sweep.folder, sweep.before)
    if jobs:
        _show(jobs, sweep)


def write_failure(folder: Path, mode: str, error: str, seconds: float) -> None:
    """Leave a summary for a job that has none of its own making; its error was told just now."""
    for sweep in _running:
        sweep.told.add(folder.absolute())
    write_status(folder, mode, {"status": "failed", "error": error, "seconds": seconds})


def table_of(jobs: Sequence[Job]) -> tuple[list[str], list[list[str]]]:
    """Head and rows: number, the overrides that differ, status, results, time, folder."""
    keys = list(dict.fromkeys(key for job in jobs for key in job.overrides))
    varying = [k for k in keys if len({job.overrides.get(k) for job in jobs}) > 1]
    names = {job.result["name"] for job in jobs if job.result}
    metric = names.pop() if len(names) == 1 else "objective"
    best = best_of(jobs)
    results = {
        **{f"found {key}": [_found(job, key) for job in jobs] for key in _suggested_keys(jobs)},
        metric: [_value_cell(job, metric) for job in jobs],
        "reached": [_reached(job) for job in jobs],
    }
    results = {title: cells for title, cells in results.items() if {*cells} != {"-"}}
    rows = [
        [
            f"{job.number}{'*' if job is best else ''}",
            *(job.overrides.get(key, "") for key in varying),
            job.status,
            *(cells[row] for cells in results.values()),
            _duration(job.summary.get("seconds")),
            job.folder.name,
        ]
        for row, job in enumerate(jobs)
    ]
    return ["run", *varying, "status", *results, "time", "folder"], rows


def _suggested_keys(jobs: Sequence[Job]) -> list[str]:
    """Keys of the config for which a search has found values, as `mode=lr_find` does."""
    return list(dict.fromkeys(key for job in jobs for key in job.summary.get("suggestions", {})))


def _found(job: Job, key: str) -> str:
    value = number_or_none(job.summary.get("suggestions", {}).get(key))
    return "-" if value is None else f"{value:.4g}"


def _value_cell(job: Job, metric: str) -> str:
    value = number_or_none(job.result.get("value"))
    if value is None:
        return "-"
    name = "" if metric != "objective" else f"{job.result['name']} "
    return f"{name}{value:.4g}"


def _reached(job: Job) -> str:
    if number_or_none(job.result.get("value")) is None:
        return "-"
    epoch, iteration = job.result.get("epoch"), job.result.get("iter")
    return f"epoch {epoch}, iter {iteration}" if epoch else f"iter {iteration}"


def _how_to_tell_the_best(jobs: Sequence[Job]) -> str:
    """What to type so that a best is marked; empty where one is, or there is nothing to compare."""
    names = {job.result["name"] for job in jobs if job.result}
    if len(names) != 1 or any(job.objective for job in jobs):
        return ""
    name = names.pop()
    with suppress(ValueError):
        infer_rule(name)
        return (
            f"The task does not name its metrics before a run; to mark the best write "
            f'metric_names = ("{name}",) into its class'
        )
    return (
        f"The name {name} does not tell whether greater is better; to mark the best: "
        f"hooks/checkpoint=best hooks.checkpoint.save_best={name} hooks.checkpoint.rule=greater "
        "(or less)"
    )


def _duration(seconds: Any) -> str:
    if not isinstance(seconds, (int, float)):
        return "-"
    if round(seconds, 1) < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m {rest:02}s"


def _show_in_a_terminal(head: list[str], rows: list[list[str]]) -> None:
    """A table with lines; the folders stand below it where there is no room for them in it."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    has_room = sum(_widths(head, rows)) + 3 * len(head) + 1 <= console.width
    table = Table(header_style="bold")
    for title in head if has_room else head[:-1]:
        table.add_column(title, overflow="fold")
    for row in rows:
        cells = row if has_room else row[:-1]
        table.add_row(*cells, style="bold" if row[0].endswith("*") else None)
    console.print(table)
    for number, *_, folder in () if has_room else rows:
        print(f"{number:<3} {folder}")


def _widths(head: list[str], rows: list[list[str]]) -> list[int]:
    return [max(map(len, column)) for column in zip(head, *rows, strict=True)]


def _show(jobs: Sequence[Job], sweep: _Sweep) -> None:
    head, rows = table_of(jobs)
    print(f"\nRuns in {sweep.folder}" + (" (* the best)" if best_of(jobs) else ""))
    if sys.stdout.isatty():
        _show_in_a_terminal(head, rows)
    else:
        widths = _widths(head, rows)
        for row in (head, *rows):
            print("  ".join(c.ljust(w) for c, w in zip(row, widths, strict=True)).rstrip())
    if hint := _how_to_tell_the_best(jobs):
        print(hint)
    for job in jobs:
        if job.summary.get("error") and job.folder not in sweep.told:
            print(f"run {job.number} failed: {job.summary['error']}")
    sys.stdout.flush()

"""`mode=explain`: who is called where, in which order, and why."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from omegaconf import DictConfig

from hookexp.compose.origins import Origins
from hookexp.hook import MOUNT_POINTS, Priority

if TYPE_CHECKING:
    from hookexp.listeners import HookEntry


@dataclass(frozen=True)
class _Row:
    priority: str
    name: str
    class_name: str
    priority_from: str
    put_there_by: str

    def cells(self) -> tuple[str, ...]:
        return (
            self.priority,
            self.name,
            self.class_name,
            self.priority_from,
            self.put_there_by,
        )


_HEAD = _Row("PRIORITY", "HOOK", "CLASS", "FROM", "PUT THERE BY")


def explain(cfg: DictConfig) -> str:
    """A table per mount point of the hooks a config has, in call order; builds hooks only.

    Raises:
        ConfigError: for hooks that cannot be made.
    """
    from hookexp.build import build_hooks
    from hookexp.contracts import applying

    entries = build_hooks(cfg).entries
    origins = Origins([str(o) for o in cfg.hydra.overrides.task], cfg.hydra.job.config_name)
    rows = {entry.name: _row(entry, cfg, origins) for entry in entries}
    points = list(MOUNT_POINTS)
    points += [s for e in entries for s in e.stages if s not in points]
    lines = _table({p: [rows[e.name] for e in entries if p in e.stages] for p in points})
    contracts = applying(entries)
    if contracts:
        lines += ["", "What the hooks' classes declare about each other (broken, it is an error)"]
        lines += [f"  {contract}" for contract in contracts]
    return "\n".join(lines)


def _row(entry: HookEntry, cfg: DictConfig, origins: Origins) -> _Row:
    overrides = [str(override) for override in cfg.hydra.overrides.task]
    key = f"hooks.{entry.name}.priority="
    if any(override.lstrip("+").startswith(key) for override in overrides):
        priority_from = "command line"
    elif cfg.hooks[entry.name].get("priority") is not None:
        priority_from = "config"
    else:
        priority_from = "class"
    return _Row(
        f"{entry.priority:>3} {_name_of(entry.priority)}",
        entry.name,
        type(entry.hook).__name__,
        priority_from,
        origins.of("hooks", entry.name),
    )


def _name_of(priority: int) -> str:
    """The name of a priority number, empty for those between the names."""
    return next((p.name for p in Priority if p.value == priority), "")


def _table(listeners: dict[str, list[_Row]]) -> list[str]:
    shown = {row for rows in listeners.values() for row in rows}
    widths = _widths([_HEAD, *shown])
    lines = ["Mount points in the order of a run, each with its hooks in call order", ""]
    lines.append(_line(_HEAD, widths))
    for point, rows in listeners.items():
        if rows:
            lines.append(point)
            lines.extend(_line(row, widths) for row in rows)
    silent = [point for point, rows in listeners.items() if not rows]
    if silent:
        lines += ["", *textwrap.wrap(f"nobody listens to: {', '.join(silent)}", 80)]
    return lines


def _widths(rows: Sequence[_Row]) -> list[int]:
    return [max(map(len, column)) for column in zip(*(row.cells() for row in rows), strict=True)]


def _line(row: _Row, widths: Sequence[int]) -> str:
    cells = (cell.ljust(width) for cell, width in zip(row.cells(), widths, strict=True))
    return ("  " + "  ".join(cells)).rstrip()

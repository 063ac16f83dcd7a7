"""What the benchmarks share: interleaved least times, tables, and the line about the machine.

Import it first: it puts the repository and its tests at the head of the import path.
"""

from __future__ import annotations

import argparse
import datetime
import gc
import os
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS.parent), str(TESTS)]

import torch


def arguments(description: str | None, **defaults: int) -> argparse.Namespace:
    """The command line of a benchmark: whole numbers by name, and `--no-peers`."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, default in defaults.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default)
    parser.add_argument("--no-peers", action="store_true", help="leave other frameworks out")
    return parser.parse_args()


def least(cases: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """The least of each case's results, in the unit they have.

    Repeats are interleaved, so that a slow minute of the machine falls on all cases alike, and
    the least counts, since other work only ever adds.
    """
    best = dict.fromkeys(cases, float("inf"))
    for _ in range(repeats):
        for name, case in cases.items():
            gc.collect()
            best[name] = min(best[name], case())
    return best


def print_environment() -> None:
    """Date, machine and versions, and how busy the machine is: a load above 1 spoils figures."""
    device = f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else ""
    print(
        f"{datetime.date.today()}, {_cpu_model()}, {os.cpu_count()} cores{device}, "
        f"{torch.get_num_threads()} thread(s), Python {platform.python_version()}, "
        f"torch {torch.__version__}, load {os.getloadavg()[0]:.1f}"
    )


def print_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """The first column to the left, the others to the right, as wide as they need."""
    lines = [list(columns), *map(list, rows)]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    for line in lines:
        cells = [line[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True)]
        print("  ".join(cells).rstrip())


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":")[1].strip() for line in lines if "model name" in line), "")

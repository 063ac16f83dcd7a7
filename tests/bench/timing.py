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
import threading
import time
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


def least_by_turns(cases: Mapping[str, Callable[[], float]], repeats: int) -> dict[str, float]:
    """As `least`, of cases that are loops which call `lap`: they run by turns, a window each.

    A shared machine drifts within seconds by more than what is measured; like this all loops meet
    the same moments. Each has a thread of its own, of which only one ever runs.
    """
    best = dict.fromkeys(cases, float("inf"))
    stdout = sys.stdout
    # Loops that redirect it, as most do, end in another order than they began.
    with open(os.devnull, "w") as sys.stdout:
        for _ in range(repeats):
            gc.collect()
            for name, result in _Turns().run(cases).items():
                best[name] = min(best[name], result)
    sys.stdout = stdout
    return best


_here = threading.local()


def windows() -> list[float]:
    """Seconds of the windows of this thread's loop."""
    if not hasattr(_here, "windows"):
        _here.windows, _here.began, _here.wait = [], None, lambda: None
    found: list[float] = _here.windows
    return found


def lap(is_first: bool) -> None:
    """A loop begins a window; with one of `least_by_turns` it is its turn when this returns."""
    now = time.perf_counter()
    if is_first:
        windows().clear()
    else:
        windows().append(now - _here.began)
    _here.wait()
    _here.began = time.perf_counter()


class _Turns:
    """Threads that hand on the right to run."""

    def __init__(self) -> None:
        self._may_run: dict[str, threading.Semaphore] = {}
        self._results: dict[str, float] = {}
        self._failures: list[BaseException] = []

    def run(self, cases: Mapping[str, Callable[[], float]]) -> dict[str, float]:
        self._may_run = {name: threading.Semaphore(0) for name in cases}
        threads = [threading.Thread(target=self._run, args=item) for item in cases.items()]
        for thread in threads:
            thread.start()
        self._may_run[next(iter(cases))].release()
        for thread in threads:
            thread.join()
        if self._failures:
            raise self._failures[0]
        return self._results

    def _run(self, name: str, case: Callable[[], float]) -> None:
        windows()
        _here.wait = lambda: self._wait(name)
        self._may_run[name].acquire()
        try:
            self._results[name] = case()
        except BaseException as error:
            self._failures.append(error)
        self._pass_on(name)
        del self._may_run[name]

    def _wait(self, name: str) -> None:
        self._pass_on(name)
        self._may_run[name].acquire()

    def _pass_on(self, name: str) -> None:
        names = list(self._may_run)
        self._may_run[names[(names.index(name) + 1) % len(names)]].release()


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

"""Stopping from outside: SIGTERM, SIGUSR1 and Ctrl-C end a run at its next safe point.

A scheduler that takes a machine away sends SIGTERM, some send SIGUSR1 a while before. The run
saves its state and leaves with the code that says so: 143, or 130 for Ctrl-C.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

from hookexp.state import RunState

_EXIT_CODES = {"SIGTERM": 143, "SIGUSR1": 143, "SIGINT": 130}


_asked_to_leave: list[int] = []
"""Exit codes of signals that came outside of a run."""


@contextmanager
def leave_quietly() -> Iterator[None]:
    """Outside of a run there is nothing to save: a signal leaves with one line and its code."""
    _asked_to_leave.clear()
    previous = {}
    for name in _EXIT_CODES:
        if hasattr(signal, name):
            number = getattr(signal, name)
            previous[number] = signal.signal(number, _leave)
    try:
        yield
    except KeyboardInterrupt:
        os.write(2, b"hookexp: interrupted\n")
        raise SystemExit(_EXIT_CODES["SIGINT"]) from None
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _leave(number: int, frame: FrameType | None) -> None:
    name = signal.Signals(number).name
    # What is being imported may catch the exception; then the run does not begin.
    _asked_to_leave.append(_EXIT_CODES[name])
    if name == "SIGINT":
        raise KeyboardInterrupt
    os.write(2, f"hookexp: stopped by {name}\n".encode())
    raise SystemExit(_EXIT_CODES[name])


class StopSignals:
    """While it is entered, a signal asks the run to stop; a second Ctrl-C leaves at once."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        if _asked_to_leave:
            raise SystemExit(_asked_to_leave[0])
        # Python lets only the main thread set handlers; elsewhere the caller's stay.
        if threading.current_thread() is threading.main_thread():
            for name in _EXIT_CODES:
                if hasattr(signal, name):
                    number = getattr(signal, name)
                    self._previous[number] = signal.signal(number, self._handle)

    def __exit__(self, *error: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # A process forked from this one, such as a loader's worker, is none of our business.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        name = signal.Signals(number).name
        if name == "SIGINT" and self._state.exit_code == _EXIT_CODES["SIGINT"]:
            os.write(2, b"\nhookexp: left at once; the last checkpoint is whole\n")
            os._exit(_EXIT_CODES["SIGINT"])
        self._state.exit_code = _EXIT_CODES[name]
        self._state.stop("Ctrl-C" if name == "SIGINT" else name, urgent=True)


def ignore_stop_signals() -> None:
    """For a loader's worker: a Ctrl-C in the terminal is for the run, which ends its workers."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for name in ("SIGTERM", "SIGUSR1"):
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_DFL)

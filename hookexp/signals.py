"""Stopping from outside: a signal ends a run at its next safe point, with its state saved.

A scheduler that takes a machine away sends SIGTERM, some send SIGUSR1 a while before; a terminal
sends SIGINT for Ctrl-C and SIGHUP when it is closed. The run leaves with the code that says so.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hookexp.state import RunState

_EXIT_CODES = {"SIGTERM": 143, "SIGUSR1": 143, "SIGINT": 130, "SIGHUP": 129}


_asked_to_leave: list[int] = []
"""Exit codes of signals that came between two runs of a sweep, or after the last one."""

_num_ended = 0
"""Runs of this process that have ended."""

_pid = os.getpid()
"""The process that set the handlers below. One forked from it inherits them."""


def leave_at_once() -> None:
    """From here on a signal ends the process with one line and its code.

    Not with an exception: from a handler it may come out anywhere, or nowhere, in what is being
    imported. There is nothing to save before a run, nor when the process is ending.
    """
    global _pid
    _pid = os.getpid()
    for number in _numbers():
        signal.signal(number, _leave_at_once)


def _numbers() -> list[signal.Signals]:
    """Of those that this system has; `nohup` starts a program with SIGHUP ignored, and means it."""
    numbers = [getattr(signal, name) for name in _EXIT_CODES if hasattr(signal, name)]
    return [n for n in numbers if n.name != "SIGHUP" or signal.getsignal(n) != signal.SIG_IGN]


@contextmanager
def leave_quietly() -> Iterator[None]:
    """Outside of a run a signal leaves: before the first run at once, after it when it can.

    That is at the next run, or at the end of this block, so that what was run is reported; a second
    signal leaves at once then too.
    """
    global _num_ended, _pid
    _asked_to_leave.clear()
    _num_ended = 0
    _pid = os.getpid()
    previous = {number: signal.signal(number, _leave) for number in _numbers()}
    try:
        yield
        leave_if_asked()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def leave_if_asked() -> None:
    """Leave now if a signal has come since the last run ended.

    Raises:
        SystemExit: with the signal's code.
    """
    if _asked_to_leave:
        raise SystemExit(_asked_to_leave[0])


def _leave(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _pid:
        _do_as_if_unhandled(number)
        return
    if _num_ended == 0 or _asked_to_leave:
        _leave_at_once(number, frame)
    _tell(number)
    _asked_to_leave.append(_EXIT_CODES[signal.Signals(number).name])


def _leave_at_once(number: int, frame: FrameType | None) -> None:
    if os.getpid() != _pid:
        _do_as_if_unhandled(number)
        return
    _tell(number)
    for stream in (sys.stdout, sys.stderr):
        with suppress(Exception):
            stream.flush()
    os._exit(_EXIT_CODES[signal.Signals(number).name])


def _do_as_if_unhandled(number: int) -> None:
    """In a process forked from the run's, such as a worker, which is none of our business."""
    signal.signal(number, signal.SIG_DFL)
    os.kill(os.getpid(), number)


def _tell(number: int) -> None:
    name = signal.Signals(number).name
    said = "interrupted" if name == "SIGINT" else f"stopped by {name}"
    os.write(2, f"hookexp: {said}\n".encode())


class StopSignals:
    """While it is entered, a signal asks the run to stop; a second Ctrl-C leaves at once."""

    def __init__(self, state: RunState) -> None:
        self._state = state
        self._pid = os.getpid()
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> None:
        leave_if_asked()
        # Python lets only the main thread set handlers; elsewhere the caller's stay.
        if threading.current_thread() is threading.main_thread():
            for number in _numbers():
                self._previous[number] = signal.signal(number, self._handle)

    def __exit__(self, *error: object) -> None:
        global _num_ended
        _num_ended += 1
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            _do_as_if_unhandled(number)
            return
        name = signal.Signals(number).name
        if name == "SIGINT" and self._state.exit_code == _EXIT_CODES["SIGINT"]:
            os.write(2, b"\nhookexp: left at once; what was saved is whole\n")
            os._exit(_EXIT_CODES["SIGINT"])
        self._state.exit_code = _EXIT_CODES[name]
        self._state.stop_urgently("Ctrl-C" if name == "SIGINT" else name)


@contextmanager
def unhandled() -> Iterator[None]:
    """A signal ends the process, also in what no handler of Python can interrupt."""
    is_main = threading.current_thread() is threading.main_thread()
    numbers = _numbers() if is_main else []
    previous = {number: signal.signal(number, signal.SIG_DFL) for number in numbers}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


@contextmanager
def held_back() -> Iterator[None]:
    """Signals that come meanwhile arrive at the end; processes are born with them held back."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _numbers())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def disregard_stop_signals() -> None:
    """For a process of the run that is to go on until the run ends it, such as a loader's worker.

    With a handler: what a process merely ignores, the programs it starts ignore as well.
    """
    for number in _numbers():
        signal.signal(number, lambda number, frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _numbers())

"""What ranks do together: they stop, or save, at the same safe point.

A signal reaches some ranks only, or each in another iteration, clocks differ, and a hook may ask on
one rank alone. A rank that left the loop by itself would wait in its checkpoint for the others, and
they for it in their gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import Any

from hookexp import dist
from hookexp.meeting import Meeting
from hookexp.state import RunState, SaveRequest, StopRequest

_SECONDS = 0.5
_MOST_CALLS = 200


class Together:
    """Has the ranks tell each other something about twice a second, all at the same call.

    After how many calls they do so next is part of what they agree on, so that it costs next to
    nothing however short an iteration is, and takes one where they are long.
    """

    def __init__(self) -> None:
        self._calls = self._calls_left = 1
        self._common_calls = math.inf
        self._since = monotonic()

    def begin(self, num_calls: int | None) -> list[int | None]:
        """Say how often `tell` will be called, where that may not be the same on all ranks.

        They begin to count anew: after the last time, some ranks may have called more often.
        Returns what each rank has said.
        """
        self._calls = self._calls_left = 1
        self._since = monotonic()
        said = dist.gather(num_calls)
        self._common_calls = min(number or 0 for number in said)
        return said

    @property
    def is_time(self) -> bool:
        """Whether the next `tell` tells."""
        return self._calls_left <= 1 < 1 + self._common_calls

    def tell(self, *values: Any, at_once: bool = False) -> list[tuple[Any, ...]]:
        """The values that each rank tells; empty where it is not the time to tell them.

        Called by all ranks, as often by one as by another.

        Args:
            at_once: it is the time; all ranks say so.
        """
        is_time = self.is_time or at_once
        self._calls_left -= 1
        self._common_calls -= 1
        if not is_time:
            return []
        seconds = max(monotonic() - self._since, 1e-6)
        made = self._calls - self._calls_left
        # At most twice as many as before: the next ones may take longer.
        calls = min(int(made * _SECONDS / seconds), 2 * made, _MOST_CALLS)
        told = dist.gather((*values, calls))
        self._calls = self._calls_left = max(min(calls for *_, calls in told), 1)
        self._since = monotonic()
        return [tuple(values) for *values, _ in told]


class StopTogether(Together):
    """Has the run of this rank stop when one of the ranks has to."""

    def __init__(self, state: RunState) -> None:
        super().__init__()
        self._state = state

    def look(self) -> None:
        """Called by all ranks, as often by one as by another."""
        state = self._state
        if not state.is_alone:
            told = self.tell(state.exit_code, state.urgent_reason)
            if told:
                self._stop_if_told(*max(told))

    def _stop_if_told(self, code: int, reason: str) -> None:
        state = self._state
        state.exit_code = state.exit_code or code
        if reason:
            state.grant(StopRequest(reason, urgent=True))


class AgreeTogether(StopTogether):
    """Has the ranks also do what hooks have asked for: to stop, or to save.

    What all ask for at the same safe point is done there; what some alone do, when they tell each
    other next.
    """

    def __init__(self, state: RunState) -> None:
        super().__init__(state)
        self._meeting: Meeting | None = None

    @contextmanager
    def meeting(self) -> Iterator[None]:
        """While it is entered, ranks can `look`."""
        if dist.world_size() == 1:
            yield
            return
        with Meeting() as self._meeting:
            yield

    def look(self, at_once: bool = False) -> None:
        """Called by all ranks at each safe point.

        Args:
            at_once: the ranks tell each other now; all of them say so.
        """
        state, meeting = self._state, self._meeting
        if meeting is None:
            return
        if state.asked and not (at_once or self.is_time):
            at_once = meeting.all_ask()
        told = self.tell(state.exit_code, state.urgent_reason, state.asked, at_once=at_once)
        if told:
            self._stop_if_told(*max((code, reason) for code, reason, _ in told))
            self._grant([request for *_, asked in told for request in asked])
            meeting.begin_anew()
        meeting.go_on()

    def _grant(self, requests: Iterable[SaveRequest | StopRequest]) -> None:
        self._state.asked = []
        files = set()
        for request in requests:
            if isinstance(request, StopRequest) or request.filename not in files:
                self._state.grant(request)
            if isinstance(request, SaveRequest):
                files.add(request.filename)

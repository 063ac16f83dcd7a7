"""What ranks do together: they stop, or save, at the same safe point.

A signal reaches some ranks only, or each in another iteration, and clocks differ. A rank that left
the loop by itself would wait in its checkpoint for the others, and they for it in their gradients.
"""

from __future__ import annotations

import math
from time import monotonic
from typing import TYPE_CHECKING, Any

from hookexp import dist

if TYPE_CHECKING:
    from hookexp.state import RunState

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

    def tell(self, *values: Any) -> list[tuple[Any, ...]]:
        """The values that each rank tells; empty where it is not the time to tell them.

        Called by all ranks, as often by one as by another.
        """
        self._calls_left -= 1
        self._common_calls -= 1
        if self._calls_left > 0 or self._common_calls < 0:
            return []
        seconds = max(monotonic() - self._since, 1e-6)
        # At most twice as many as before: the next ones may take longer.
        calls = min(int(self._calls * _SECONDS / seconds), 2 * self._calls, _MOST_CALLS)
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
        if state.is_alone:
            return
        told = self.tell(state.exit_code, state.urgent_reason)
        if not told:
            return
        code, reason = max(told)
        state.exit_code = state.exit_code or code
        if reason:
            state.stop(reason, urgent=True)

"""`Windows`: which iterations of a run share one optimizer step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from hookexp.numeric import is_whole


class Windows:
    """Accumulation windows as a function of the iteration, so that a resumed run agrees on them.

    Windows of n iterations follow each other from the iteration n was set at. The last one before
    n changes, or before the run ends, may be shorter; windows go on over the ends of epochs.

    Args:
        schedule: n, or `[[from, n], ...]`: from that iteration on, n of them make a step.

    Raises:
        ValueError: beginning with `cumulative_iters`.
    """

    def __init__(self, schedule: int | Sequence[Sequence[int]] = 1) -> None:
        self.schedule = _checked(schedule)

    @property
    def longest(self) -> int:
        """The most iterations that a step is ever made of."""
        return max(length for _, length in self.schedule)

    def bounds(self, iteration: int, max_iters: int | None = None) -> tuple[int, int]:
        """First iteration of the window an iteration is in, and the first one after it."""
        begin, length, end = self._segment(iteration)
        first = iteration - (iteration - begin) % length
        ends = (first + length, end, max_iters)
        return first, min(e for e in ends if e is not None)

    def count(self, max_iters: int) -> int:
        """Optimizer steps of a run."""
        steps = 0
        first = 0
        while first < max_iters:
            _, length, end = self._segment(first)
            end = max_iters if end is None else min(end, max_iters)
            steps += -(-(end - first) // length)
            first = end
        return steps

    def _segment(self, iteration: int) -> tuple[int, int, int | None]:
        """Where the length that holds at an iteration was set, the length, and where it ends."""
        begin, length = self.schedule[0]
        for start, later_length in self.schedule[1:]:
            if iteration < start:
                return begin, length, start
            begin, length = start, later_length
        return begin, length, None


def _checked(schedule: Any) -> list[tuple[int, int]]:
    if is_whole(schedule, 1):
        return [(0, schedule)]
    if not isinstance(schedule, Sequence) or isinstance(schedule, str) or not schedule:
        raise ValueError(
            f"cumulative_iters={schedule!r}: use a whole number, 1 or more, or pairs "
            "[[from_iter, n], ...] such as [[0, 1], [500, 4]]"
        )
    pairs = []
    for pair in schedule:
        fits = isinstance(pair, Sequence) and len(pair) == 2 and all(map(is_whole, pair))
        if not fits or pair[0] < 0 or pair[1] < 1:
            raise ValueError(
                f"cumulative_iters={schedule!r}: {pair!r} is not a pair [from_iter, n] of whole "
                "numbers, n 1 or more"
            )
        pairs.append((pair[0], pair[1]))
    starts = [start for start, _ in pairs]
    if starts[0] != 0 or starts != sorted(set(starts)):
        raise ValueError(
            f"cumulative_iters={schedule!r}: the first pair begins at iteration 0, and each "
            "further one later than the one before it"
        )
    return pairs

"""Accumulation windows against a count by hand, iteration by iteration."""

from __future__ import annotations

import pytest

from hookexp.optim.windows import Windows


def by_hand(schedule, max_iters):
    """The lengths of a run's windows, by walking through it."""
    lengths, filled = [], 0
    starts = dict(schedule)
    length = 1
    for iteration in range(max_iters):
        if iteration in starts:
            if filled:
                lengths.append(filled)
            length, filled = starts[iteration], 0
        filled += 1
        if filled == length:
            lengths.append(filled)
            filled = 0
    return lengths + ([filled] if filled else [])


@pytest.mark.parametrize(
    "schedule",
    [[(0, 1)], [(0, 4)], [(0, 1), (5, 4)], [(0, 3), (4, 2), (9, 5)], [(0, 2), (1, 3), (100, 7)]],
)
@pytest.mark.parametrize("max_iters", [1, 4, 9, 10, 23])
def test_bounds_and_count(schedule, max_iters):
    windows = Windows([list(pair) for pair in schedule])
    lengths = by_hand(schedule, max_iters)
    assert windows.count(max_iters) == len(lengths)
    first = 0
    for length in lengths:
        for iteration in range(first, first + length):
            assert windows.bounds(iteration, max_iters) == (first, first + length)
        first += length
    assert windows.longest == max(length for _, length in schedule)


def test_without_an_end_the_last_window_is_full():
    assert Windows(4).bounds(9) == (8, 12)


@pytest.mark.parametrize(
    ("schedule", "message"),
    [
        (0, "cumulative_iters=0: use a whole number"),
        (True, "cumulative_iters=True"),
        ("4", "cumulative_iters='4'"),
        ([], "or pairs"),
        ([4], "4 is not a pair"),
        ([[0, 1, 2]], "is not a pair"),
        ([[0, 0]], "n 1 or more"),
        ([[5, 2]], "begins at iteration 0"),
        ([[0, 2], [9, 4], [3, 2]], "later than the one before"),
    ],
)
def test_what_is_refused(schedule, message):
    with pytest.raises(ValueError, match="cumulative_iters") as caught:
        Windows(schedule)
    assert message in str(caught.value)

"""Numbers, and what looks like one."""

from __future__ import annotations

import math

import pytest

from hookexp.numeric import is_number, is_whole, require_whole


@pytest.mark.parametrize(
    ("value", "whole", "number"),
    [
        *((3, True, True), (-3, True, True), (2.5, False, True), (True, False, False)),
        *((math.nan, False, False), (math.inf, False, False), ("3", False, False)),
        (None, False, False),
    ],
)
def test_what_is_one(value, whole, number):
    assert (is_whole(value), is_number(value)) == (whole, number)


def test_what_is_refused_and_how():
    require_whole("interval", 1)
    require_whole("begin", 0, 0)
    with pytest.raises(ValueError, match=r"^interval=0: use a whole number of steps, 1 or more$"):
        require_whole("interval", 0, of="steps")
    with pytest.raises(ValueError, match=r"^begin=-1: use a whole number, 0 or more$"):
        require_whole("begin", -1, 0)

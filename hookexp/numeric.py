"""What counts as a number where one is asked for: True and NaN do not."""

from __future__ import annotations

import math
from numbers import Real
from typing import Any


def is_whole(value: Any, least: float = -math.inf) -> bool:
    """Whether it is an int (a bool is not) of at least that size."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= least


def is_number(value: Any) -> bool:
    """Whether it is a finite int or float (a bool is not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def stands_for_one(value: Any) -> bool:
    """Whether `float` makes one number of it: also of an array without dimensions."""
    if isinstance(value, Real):
        return True
    return hasattr(type(value), "__float__") and getattr(value, "ndim", 0) == 0


def require_whole(name: str, value: Any, least: int = 1, of: str = "") -> None:
    """Refuse what is not a whole number, of `iterations` for example, of at least that size.

    Raises:
        ValueError: beginning with the name of the parameter.
    """
    if not is_whole(value, least):
        what = f"a whole number of {of}" if of else "a whole number"
        raise ValueError(f"{name}={value}: use {what}, {least} or more")

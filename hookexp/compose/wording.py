"""Parts of error messages: what is allowed, what was probably meant, what a library said."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

from omegaconf.errors import OmegaConfBaseException

_INTERPOLATION_PREFIX = re.compile(r"^\w+ raised while resolving interpolation: ")


def nearest(given: str, allowed: Iterable[str], cutoff: float = 0.6) -> str:
    """`; did you mean X?`, or nothing where no allowed name is near; case does not count."""
    name = nearest_name(given, allowed, cutoff)
    return f"; did you mean {name}?" if name else ""


def nearest_name(given: str, allowed: Iterable[str], cutoff: float = 0.6) -> str:
    """One that is spelt alike, or has the given one among its words: `max_epochs` has `epochs`."""
    by_lower_case = {name.lower(): name for name in allowed}
    given = given.lower()
    close = [name for name in by_lower_case if given != name and given in name.split("_")]
    close = close or difflib.get_close_matches(given, by_lower_case, n=1, cutoff=cutoff)
    return by_lower_case[close[0]] if close else ""


def listed(names: Iterable[str]) -> str:
    """Names on one line, or `none`."""
    return ", ".join(names) or "none"


def on_one_line(text: object) -> str:
    return " ".join(str(text).split())


def said(error: OmegaConfBaseException) -> str:
    """What is wrong in the words of OmegaConf, without the lines about its types."""
    line = str(error).split("\n    full_key:")[0].split("\n")[0]
    return on_one_line(_INTERPOLATION_PREFIX.sub("", line).strip('"'))

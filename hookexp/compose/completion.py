"""Shell completion: what the line that is being completed says about configs and sets.

Hydra completes `hooks=` from what `SetSource.list` offers. It reads the line itself, but neither
the line's `--config-dir` nor the edits that stand before the one being typed.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from hookexp.compose.named_sets import SetSearchPath, SetSource
from hookexp.compose.set_edits import SETS


def prepare(words: Sequence[str]) -> None:
    """Make ready for a query of the shell, if the words of the command line are one."""
    if not any(word.startswith("query=") for word in words):
        return
    typed = os.environ.get("COMP_LINE", "").split(" ")
    for flag, value in pairwise(typed):
        if flag in ("--config-dir", "-cd") and Path(value).is_dir():
            SetSearchPath.config_dir = Path(value)
    group, _, option = typed[-1].partition("=")
    if group in SETS:
        SetSource.typed = option[: max(option.rfind("+"), option.rfind("-"), 0)]

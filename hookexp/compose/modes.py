"""The modes a run can have."""

from __future__ import annotations

from typing import Any

from hookexp.compose.wording import listed, nearest
from hookexp.errors import ConfigError

MODES = ("train", "val", "test", "explain", "verify_resume", "lr_find")


def check_mode(mode: Any) -> None:
    """Refuse a mode that does not exist.

    Raises:
        ConfigError: lists those that do.
    """
    if mode not in MODES:
        raise ConfigError(
            f"mode={mode}: there is no such mode; modes are: {listed(MODES)}"
            f"{nearest(str(mode), MODES)}"
        )

"""Where the configs are."""

from __future__ import annotations

from pathlib import Path


def conf_dir() -> Path:
    """The folder of the configs: inside the package when installed, else beside it."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"

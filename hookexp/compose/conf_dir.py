"""Where the configs are, and how Hydra is begun on them."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path

import hydra

IS_HYDRA_1_3 = hydra.__version__.startswith("1.3.")
"""Whether Hydra is the older of the two that we take; what asks goes when 1.3 goes."""

VERSION_BASE = {"version_base": "1.3"} if IS_HYDRA_1_3 else {}
"""An argument that Hydra 1.3 warns without and 1.4 warns with."""


def conf_dir() -> Path:
    """The folder of the configs: inside the package when installed, else beside it."""
    package = Path(__file__).parent.parent
    inside = package / "conf"
    return inside if inside.is_dir() else package.parent / "conf"


def with_hydra() -> AbstractContextManager[None]:
    """Within it `hydra.compose` and whatever looks up configs know this project's."""
    return hydra.initialize_config_dir(str(conf_dir()), **VERSION_BASE)

"""Makes this project's plugins and resolvers known to Hydra and OmegaConf.

Runs when `hookexp.app` is imported, so also in the processes that a launcher starts.
"""

from __future__ import annotations

import logging
import warnings
from typing import Any

from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from hookexp.compose.conf_dir import IS_HYDRA_1_3
from hookexp.compose.folders import job_folder
from hookexp.compose.help_text import group_help, member_help
from hookexp.compose.named_sets import SetSearchPath, SetSource

_register_resolver: Any = (
    OmegaConf.register_new_resolver if IS_HYDRA_1_3 else OmegaConf.register_resolver
)
"""In OmegaConf 2.3, which comes with it, that name is another function's."""

_CALLS_WHAT_IT_LIKES = (
    r"hydra\.utils\.instantiate\(\) resolved",
    "Hydra configured Python logging without",
)
"""Hydra 1.4 warns where it is not told what a config may call. Here a config may call anything but
what Hydra refuses by itself; a list made of the config's own targets would allow some of that too.
See https://hydra.cc/docs/advanced/execution_whitelist/; Hydra 1.5 will need such a list."""


def register() -> None:
    """Register all of them; calling it again changes nothing."""
    # It logs what it raises as well, and what it raises is told by us.
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)
    for warning in _CALLS_WHAT_IT_LIKES:
        warnings.filterwarnings("ignore", warning, UserWarning)
    Plugins.instance().register(SetSource)
    Plugins.instance().register(SetSearchPath)
    for function in (job_folder, group_help, member_help):
        _register_resolver(f"hookexp.{function.__name__}", function, replace=True)

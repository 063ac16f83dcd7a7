"""Makes this project's plugins and resolvers known to Hydra and OmegaConf.

Runs when `hookexp.app` is imported, so also in the processes that a launcher starts.
"""

from __future__ import annotations

import logging

from hydra.core.plugins import Plugins
from omegaconf import OmegaConf

from hookexp.compose.folders import job_folder
from hookexp.compose.help_text import group_help, member_help
from hookexp.compose.named_sets import SetSearchPath, SetSource, removed_members


def register() -> None:
    """Register all of them; calling it again changes nothing."""
    # It logs what it raises as well, and what it raises is told by us.
    logging.getLogger("hydra.utils").setLevel(logging.CRITICAL)
    Plugins.instance().register(SetSource)
    Plugins.instance().register(SetSearchPath)
    OmegaConf.register_new_resolver("hookexp.minus", removed_members, replace=True)
    OmegaConf.register_new_resolver("hookexp.job_folder", job_folder, replace=True)
    OmegaConf.register_new_resolver("hookexp.group_help", group_help, replace=True)
    OmegaConf.register_new_resolver("hookexp.member_help", member_help, replace=True)

"""`mode=lr_find`: a run that searches a learning rate and does nothing else."""

from __future__ import annotations

import re
from collections.abc import Sequence

from omegaconf import DictConfig, OmegaConf, open_dict

from hookexp.compose.conf_dir import conf_dir

_IN_THE_WAY = ("param_scheduler", "checkpoint", "check_invalid_loss", "early_stopping")
"""Hooks that would change the learning rate, save what is thrown away, or end the search."""
_OF_THE_SEARCH = re.compile(rf"\+lr_finder(/\w+)?(?!\w)|-({'|'.join(_IN_THE_WAY)})(?!\w)")
"""What `hooks=` holds for the search's sake, if it adds the lr finder."""


def with_the_finder(words: Sequence[str]) -> list[str]:
    """A command line whose parameters of the lr finder hold whether `hooks=` has it on or not."""
    if "mode=lr_find" not in words:
        return list(words)
    return [f"++{word}" if word.startswith("hooks.lr_finder.") else word for word in words]


def without_the_search(word: str) -> str:
    """A word of the command line as a training needs it; empty if it is the search's alone."""
    key, _, value = word.lstrip("+").partition("=")
    if key == "mode" or re.match(r"hooks[./]lr_finder\b", key):
        return ""
    if key == "hooks" and "+lr_finder" in value:
        value = _OF_THE_SEARCH.sub("", value)
        return value and f"hooks={value}"
    return word


def for_lr_find(cfg: DictConfig) -> DictConfig:
    """The config with the lr finder on and, without validation, what is in its way taken out.

    `hooks=+lr_finder` with parameters of its own is kept as it is.
    """
    cfg = cfg.copy()
    with open_dict(cfg):
        hooks = cfg.hooks if cfg.hooks is not None else OmegaConf.create({})
        for name in _IN_THE_WAY:
            hooks.pop(name, None)
        finder = hooks.get("lr_finder") or {}
        if "_target_" not in finder:  # None, or parameters from the command line alone.
            default = OmegaConf.load(conf_dir() / "hooks" / "lr_finder" / "default.yaml")
            hooks.lr_finder = OmegaConf.merge(default, finder)
        cfg.hooks, cfg.param_scheduler, cfg.data.val, cfg.mode = hooks, {}, None, "train"
    return cfg

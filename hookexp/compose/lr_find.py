"""`mode=lr_find`: a run that searches a learning rate and does nothing else."""

from __future__ import annotations

from omegaconf import DictConfig, OmegaConf, open_dict

from hookexp.compose.conf_dir import conf_dir

_IN_THE_WAY = ("param_scheduler", "checkpoint", "check_invalid_loss", "early_stopping")
"""Hooks that would change the learning rate, save what is thrown away, or end the search."""


def for_lr_find(cfg: DictConfig) -> DictConfig:
    """The config with the lr finder on and, without validation, what is in its way taken out.

    `hooks=+lr_finder` with parameters of its own is kept as it is.
    """
    cfg = cfg.copy()
    with open_dict(cfg):
        hooks = cfg.hooks if cfg.hooks is not None else OmegaConf.create({})
        for name in _IN_THE_WAY:
            hooks.pop(name, None)
        if hooks.get("lr_finder") is None:
            hooks.lr_finder = OmegaConf.load(conf_dir() / "hooks" / "lr_finder" / "default.yaml")
        cfg.hooks, cfg.param_scheduler, cfg.data.val, cfg.mode = hooks, {}, None, "train"
    return cfg

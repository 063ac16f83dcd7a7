"""What the words of the command line say beyond the config they lead to."""

from __future__ import annotations

import inspect
import shlex
from collections.abc import Sequence

import hydra.utils
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, open_dict

_OF_AN_EVALUATION = ("experiment", "data", "model", "task")
_TARGET = "._target_="


def drop_keys_of_the_old_target(cfg: DictConfig, words: Sequence[str]) -> None:
    """With `model._target_=my_module.Net` the keys of the model before it go, where Net has none.

    Keys that were typed stay, so that a wrong one of those is told.
    """
    for word in words:
        path, found, target = word.lstrip("+").partition(_TARGET)
        if not found or not isinstance(node := OmegaConf.select(cfg, path), DictConfig):
            continue
        try:
            parameters = inspect.signature(hydra.utils.get_object(target.strip("'\""))).parameters
        except Exception:
            continue  # `instantiate` says what is wrong with it.
        typed = {w.lstrip("+~").partition("=")[0] for w in words}
        for key in list(node):
            inherited = f"{path}.{key}" not in typed and not str(key).startswith("_")
            if inherited and key not in parameters and key != "priority":
                with open_dict(cfg):
                    del node[key]


def words_of_an_evaluation() -> str:
    """What has to be typed beside `mode=test load_from=...` for the same model and data."""
    if not HydraConfig.initialized():
        return ""
    config = HydraConfig.get()
    sources = config.runtime.config_sources
    words = [f"--config-dir {s.path}" for s in sources if s.provider == "command-line"]
    for override in config.overrides.task:
        key = str(override).lstrip("+~").partition("=")[0]
        if key.split(".")[0].split("/")[0].split("@")[0] in _OF_AN_EVALUATION:
            words.append(shlex.quote(str(override)))
    return " ".join(words)

"""What the words of the command line say beyond the config they lead to."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from hookexp.compose.lr_find import without_the_search
from hookexp.compose.secrets import masked_words

_OF_AN_EVALUATION = ("experiment", "data", "model", "task")


def words_of_an_evaluation(cfg: DictConfig) -> str:
    """What has to be typed beside `load_from=...` for the same model and data; or nothing.

    It is `mode=test`, or `mode=val` for data without a test split.
    """
    modes = [mode for mode in ("test", "val") if cfg.data.get(mode) is not None]
    if not modes:
        return ""
    return f"{_typed(_of_an_evaluation)} mode={modes[0]}".lstrip()


def _of_an_evaluation(word: str) -> str:
    group = re.split(r"[./@=]", word.lstrip("+~"))[0]
    return word if group in _OF_AN_EVALUATION else ""


def words_of_a_training() -> str:
    """What has to be typed for the same run after a search of its learning rate."""
    return _typed(without_the_search)


def _typed(wanted: Callable[[str], str]) -> str:
    """What is wanted of each word of the command line, quoted for a shell, without secrets."""
    if not HydraConfig.initialized():
        return ""
    config = HydraConfig.get()
    sources = config.runtime.config_sources
    dirs = [str(s.path) for s in sources if s.provider == "command-line"]
    words = [f"--config-dir {shlex.quote(path)}" for path in dirs]
    for override in map(str, config.overrides.task):
        if word := wanted(override):
            words.append(shlex.quote(masked_words(word)))
    return " ".join(words)

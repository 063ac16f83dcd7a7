"""What is said where `resume=auto` meets a run that is over."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from hookexp.compose.secrets import masked
from hookexp.compose.typed import words_of_an_evaluation

if TYPE_CHECKING:
    from hookexp.summary import Summary

logger = logging.getLogger("hookexp")
_OF_THE_START = ("resume", "resume_ignore", "load_from", "load_from_trusted", "name")
"""Keys that do not say what is trained."""
_MOST_TOLD = 5


def tell_finished(summary: Summary, cfg: DictConfig, work_dir: Path) -> None:
    """Say so, how it ended, and what of the config it was not trained with."""
    logger.info("this run is over; a larger trainer.max_epochs or max_iters would continue it")
    words = words_of_an_evaluation(cfg)
    if others := _others_than_trained_with(cfg, work_dir / ".hydra" / "config.yaml"):
        more = f" and {len(others) - _MOST_TOLD} more" if len(others) > _MOST_TOLD else ""
        logger.warning(
            "the config is another than it was trained with: %s%s; what follows is of the run as "
            "it was, and another folder is for a training with this one",
            *(", ".join(others[:_MOST_TOLD]), more),
        )
        words = ""  # They would be of another model.
    for line in summary.describe(work_dir, words):
        logger.info(line)


def _others_than_trained_with(cfg: DictConfig, saved: Path) -> list[str]:
    """Such as `model.depth=4 (was 2)`; none if it is not known what it was trained with."""
    plain = masked(OmegaConf.to_container(cfg, resolve=False))
    try:
        before = OmegaConf.to_container(OmegaConf.load(saved), resolve=False)
        now = OmegaConf.to_container(OmegaConf.create(OmegaConf.to_yaml(plain)), resolve=False)
    except (OSError, ValueError, OmegaConfBaseException, YAMLError):
        return []
    changes = _changes(before, now, "")
    return [told for key, told in changes if key.partition(".")[0] not in _OF_THE_START]


def _changes(before: Any, now: Any, key: str) -> Iterator[tuple[str, str]]:
    """Keys, each with what is said of it; a part that was taken away is None."""
    if isinstance(before, dict) and isinstance(now, dict):
        for name in {**before, **now}:
            yield from _changes(before.get(name), now.get(name), f"{key}.{name}".removeprefix("."))
    elif before is None and isinstance(now, dict):
        yield key, f"{key} (was not there)"
    elif now is None and isinstance(before, dict):
        yield key, f"no {key}"
    elif before != now:
        yield key, f"{key}={now} (was {before})"

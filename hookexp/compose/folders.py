"""The folder of a run or a sweep: its name, and how one process alone gets it.

Everything here happens before Hydra makes the folder, so that two runs started in the same second
do not share one, and a run does not write into the results of another.
"""

from __future__ import annotations

import glob
import hashlib
import os
import re
from collections.abc import Sequence
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, read_write

from hookexp.compose.secrets import masked_words
from hookexp.errors import ConfigError

_MAX_WORDS = 94
"""Characters of the overrides in the name of a folder."""
_TRACES = ("last_checkpoint", "scalars.jsonl")
"""Files that tell that a folder holds a run."""


class FolderInUse(ConfigError):
    """A folder holds a run already, or another process has it; nothing in it is touched."""


def job_folder(
    number: int, overrides: str, sweep_dir: str, resume: str | None, words: Sequence[str]
) -> str:
    """Resolver `hookexp.job_folder`: `3_hooks-+ema_optimizer.lr-0.1` for a job of a sweep.

    The same for the same overrides, so that a sweep that is issued again finds its folders; with
    `resume=auto` also those of jobs that had another number then.
    Made of characters that can stand in an override without quotes: `load_from=FOLDER`.

    Args:
        overrides: those that name the folder, in one string, which does not tell where one ends.
        words: all overrides, one by one.
    """
    for word in words:
        overrides = overrides.replace(word, masked_words(word))
    text = _text_of_folder(overrides)
    name = f"{number}_{text}" if text else str(number)
    if resume != "auto" or not text:
        return name
    # Other overrides may come to the same text: `[a]` and `[a*]`.
    named = {word for word in map(masked_words, words) if word in overrides}
    other = f"{text}-{_digest(overrides)}"
    candidates = [Path(sweep_dir) / name]
    for known in (text, other):
        candidates += sorted(Path(sweep_dir).glob(f"*_{glob.escape(known)}"))
    for folder in candidates:
        is_jobs = folder.is_dir() and folder.name.partition("_")[0].isdigit()
        if is_jobs and named <= _words_of(folder, named):
            return folder.name
    return f"{number}_{other}" if candidates[0].exists() else name


def _words_of(folder: Path, otherwise: set[str]) -> set[str]:
    """The overrides a job was begun with, where it came so far as to save them."""
    file = folder / ".hydra" / "overrides.yaml"
    return {str(word) for word in OmegaConf.load(file)} if file.is_file() else otherwise


def _digest(overrides: str) -> str:
    return hashlib.sha256(overrides.encode()).hexdigest()[:8]


def _text_of_folder(overrides: str) -> str:
    text = re.sub(r"[^\w.+-]+", "-", overrides).rstrip("_-. ")
    if len(text) <= _MAX_WORDS:
        return text
    return f"{text[: _MAX_WORDS - 9]}-{_digest(overrides)}"


def claim_run_folder(cfg: DictConfig) -> None:
    """Settle `hydra.run.dir`: as given, or a new folder that no other process has.

    Raises:
        ConfigError: for a folder that is empty text, that cannot be written, or that holds a run
            already.
    """
    if _is_given("hydra.run.dir", cfg):
        folder = _given(str(cfg.hydra.run.dir), "hydra.run.dir")
        refuse_used(folder, cfg)
        _make(folder, "hydra.run.dir")
        return
    with read_write(cfg.hydra):
        cfg.hydra.run.dir = str(_claim(Path(str(cfg.hydra.run.dir)), "hydra.run.dir"))


def claim_sweep_folder(cfg: DictConfig) -> None:
    """Settle `hydra.sweep.dir` in the same way; a given one may be one of before."""
    if _is_given("hydra.sweep.dir", cfg):
        _make(_given(str(cfg.hydra.sweep.dir), "hydra.sweep.dir"), "hydra.sweep.dir")
        return
    folder = _claim(Path(str(cfg.hydra.sweep.dir)), "hydra.sweep.dir")
    with read_write(cfg.hydra):
        cfg.hydra.sweep.dir = str(folder)
        # Jobs are composed anew, each from these overrides.
        quoted = str(folder).replace("\\", "\\\\").replace("'", "\\'")
        cfg.hydra.overrides.hydra.append(f"hydra.sweep.dir='{quoted}'")


def refuse_used(folder: Path, cfg: DictConfig) -> None:
    """Refuse to train, or to search a learning rate, in a folder that holds a run.

    Unless it is to go on there.

    Raises:
        FolderInUse: says which file is there and how to go on.
    """
    is_search = cfg.mode == "lr_find"
    if not is_search and (cfg.mode != "train" or _continues(folder, cfg)):
        return
    for name in _TRACES:
        if (folder / name).exists():
            is_other = not is_search and cfg.resume is not None
            other = f", which resume={cfg.resume} is not of" if is_other else ""
            way_out = "" if is_search else "continue it with resume=auto, or "
            where = str(folder) if _is_of_a_sweep() else f"hydra.run.dir={folder}"
            raise FolderInUse(
                f"{where}: holds a run already ({name}){other}; {way_out}choose another folder"
            )


def _continues(folder: Path, cfg: DictConfig) -> bool:
    """Whether `resume` names the run in a folder: `auto`, the folder, or a checkpoint of it."""
    if cfg.resume is None or cfg.resume == "auto":
        return cfg.resume is not None
    own = [folder]
    out_dir = OmegaConf.select(cfg, "hooks.checkpoint.out_dir")
    if out_dir is not None:
        own.append(Path(str(out_dir)).expanduser() / folder.name)
    path = Path(str(cfg.resume)).expanduser()
    named = (path if path.is_dir() else path.parent).resolve()
    return named in [place.resolve() for place in own]


def is_other_rank() -> bool:
    """Whether torchrun started this process beside the one that owns the folder."""
    return int(os.environ.get("RANK", "0")) > 0


def is_one_of_several() -> bool:
    """Whether torchrun started more processes than this one."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def _is_of_a_sweep() -> bool:
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def _is_given(key: str, cfg: DictConfig) -> bool:
    return any(
        str(override).lstrip("+").startswith(f"{key}=") for override in cfg.hydra.overrides.hydra
    )


def _given(folder: str, key: str) -> Path:
    if not folder.strip():
        raise ConfigError(f"{key}=: is empty; give a folder, or {key}=. for the current one")
    return Path(folder)


def _make(folder: Path, key: str) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(key, folder, error) from error
    if not os.access(folder, os.W_OK | os.X_OK):
        raise unwritable(key, folder, PermissionError("permission denied"))


def _claim(wanted: Path, key: str) -> Path:
    """Make a folder that did not exist: the wanted name, or with _1, _2, ... after it."""
    folder = wanted
    number = 0
    try:
        wanted.parent.mkdir(parents=True, exist_ok=True)
        while True:
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
                folder = wanted.with_name(f"{wanted.name}_{number}")
            else:
                return folder
    except OSError as error:
        raise unwritable(key, wanted, error) from error


def unwritable(key: str, folder: Path, error: OSError) -> ConfigError:
    """What to raise where a folder takes no file."""
    reason = (error.strerror or str(error)).lower()
    where = f"{key}={folder}"
    if key == "hydra.run.dir" and _is_of_a_sweep():
        key, where = "hydra.sweep.dir", str(folder)
    return ConfigError(
        f"{where}: cannot be written ({reason}); choose another folder with {key}=FOLDER"
    )

"""What is secret stays out of what is saved: passwords and keys are masked in every config.

A value that comes from the environment (`${oc.env:WANDB_API_KEY}`) is saved as it was written, not
as what it stands for: a resolved config is never written anywhere.
"""

from __future__ import annotations

import logging
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf
from yaml import YAMLError

MASK = "***"
_NAMES = (
    r"(?i:passw(?:or)?d|passphrase|token|secret|credentials?|(?:api|access|secret|private)_?key)"
)
_BEGIN = r"(?:^|[^A-Za-z0-9]|(?<=[a-z0-9])(?=[A-Z]))"
"""Of a word of a key, also in `dbPassword`."""
_SECRET_KEY = re.compile(rf"{_BEGIN}{_NAMES}$")
_VALUE = r"""'(?:[^'\\]|\\.)*'|"(?:[^"\\]|\\.)*"|\[[^\]]*\]|[^,}\]]+"""
_SECRET_WORD = re.compile(
    rf"(?P<key>{_BEGIN}{_NAMES}['\"]?\s*[=:])(?!\s*['\"]?(?:\{{|\$\\?\{{|{re.escape(MASK)}))"
    rf"(?P<space>\s*)(?:{_VALUE})"
)
"""Of the command line: `a.password=...`, and `{password: ...}` in what another key is set to."""
_IN_URL = re.compile(r"(:\\?/\\?/[^/\s:@]*:)(?!\$\\?\{)[^/\s@]+@")
"""A password before the name of a host."""


def masked(value: Any, key: str = "") -> Any:
    """A plain config with the values of secret keys replaced; interpolations are left to read."""
    if isinstance(value, dict):
        return {k: masked(v, str(k)) for k, v in value.items()}
    if isinstance(value, list):
        return [masked(item, key) for item in value]
    if not isinstance(value, (str, int, float)) or isinstance(value, bool):
        return value
    if isinstance(value, str):
        value = masked_words(value)
    is_secret = _SECRET_KEY.search(key) and not str(value).startswith("${")
    return MASK if is_secret else value


def masked_words(text: str) -> str:
    """Words of the command line, with the values of secret keys replaced."""
    return _IN_URL.sub(rf"\g<1>{MASK}@", _SECRET_WORD.sub(rf"\g<key>\g<space>{MASK}", text))


class MaskedFormatter(logging.Formatter):
    """Of Hydra's own messages, such as the words of each job of a sweep."""

    def format(self, record: logging.LogRecord) -> str:
        return masked_words(super().format(record))


def save_config(cfg: DictConfig, work_dir: Path) -> None:
    """Write `.hydra/{config,hydra,overrides}.yaml`, as Hydra does, without the secrets.

    Where a run was trained another mode writes its own beside it: a test into `.hydra_test`.

    Raises:
        OSError: if the folder takes no file.
    """
    folder = work_dir / ".hydra"
    if cfg.mode != "train" and folder.exists():
        folder = work_dir / f".hydra_{cfg.mode}"
    folder.mkdir(exist_ok=True)
    _write(OmegaConf.to_container(cfg, resolve=False), folder / "config.yaml")
    save_words(folder)


def save_words(folder: Path) -> None:
    """Write what was typed, and Hydra's part of the config."""
    hydra = OmegaConf.to_container(HydraConfig.instance().cfg or {}, resolve=False)
    _write(hydra, folder / "hydra.yaml")
    overrides = [str(word) for word in HydraConfig.get().overrides.task]
    _write(overrides, folder / "overrides.yaml")


def mask_file(path: Path) -> None:
    """Mask a yaml file in place that Hydra has written by itself; one that cannot be goes."""
    if not path.is_file():
        return
    try:
        _write(OmegaConf.to_container(OmegaConf.load(path), resolve=False), path)
    except (OSError, YAMLError):  # A full disk, on which Hydra may have left half of it.
        with suppress(OSError):
            path.unlink()


def _write(content: Any, path: Path) -> None:
    """Replace a file; on a full disk the one before stays whole."""
    temporary = path.with_name(f".{path.name}.tmp")
    text = OmegaConf.to_yaml(OmegaConf.create(masked(content)))
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(path)
    except OSError:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise

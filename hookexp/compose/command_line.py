"""What `main` has to know of the command line before Hydra reads it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from hookexp.compose.set_edits import SETS, SetEdits
from hookexp.compose.wording import nearest
from hookexp.errors import ConfigError

_TAKES_FOLDER = ("--config-dir", "-cd")
_TAKES_VALUE = ("--config-path", "-cp", "--config-name", "-cn", "--package", "-p", "--cfg", "-c")
FLAGS = (
    *("--help", "--hydra-help", "--version", "--cfg", "--resolve", "--package", "--run"),
    *("--multirun", "--shell-completion", "--config-path", "--config-name", "--config-dir"),
    *("--experimental-rerun", "--info"),
)
_INFO = ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath")
"""What may follow --info, which may also stand alone."""
_FORMS = {"--cfg": ("job", "hydra", "all"), "-c": ("job", "hydra", "all")}
_SHORT = ("-h", "-r", "-m", "-i", "-sc")


@dataclass(frozen=True)
class CommandLine:
    """The folder of `--config-dir`, the flags with their values, and the `key=value` words."""

    config_dir: Path | None
    flags: tuple[str, ...]
    overrides: tuple[str, ...]

    @staticmethod
    def parse(words: Sequence[str]) -> CommandLine:
        """Read the words after the program's name.

        Raises:
            ConfigError: for an override written like a flag, a set that is given twice or in
                several words, or a config folder that is not there.
        """
        _check_edits(words)
        flags: list[str] = []
        overrides: list[str] = []
        config_dir = None
        rest = iter(words)
        for word in rest:
            flag, has_value, value = word.partition("=")
            if flags and flags[-1] in ("-i", "--info") and word in _INFO:
                flags.append(word)
                continue
            if not word.startswith("-") or word == "-":
                overrides.append(word)
                continue
            flags.append(word)
            if flag in (*_TAKES_FOLDER, *_TAKES_VALUE):
                if not has_value:
                    value = next(rest, "")
                    flags.append(value)
                if not value:
                    raise ConfigError(f"{flag}: needs a value after it")
                if value not in _FORMS.get(flag, (value,)):
                    raise ConfigError(f"{flag} {value}: use one of {', '.join(_FORMS[flag])}")
                if flag in ("--config-path", "-cp"):
                    _check_config_path(flag, value)
                config_dir = Path(value) if flag in _TAKES_FOLDER else config_dir
            else:
                _check_flag(flag, value)
        line = CommandLine(config_dir, tuple(flags), tuple(overrides))
        line._check_folder()
        line._check_sets()
        return line

    def _check_folder(self) -> None:
        if self.config_dir is None:
            return
        if not self.config_dir.is_dir():
            raise ConfigError(f"--config-dir {self.config_dir}: there is no such folder")
        for file in (self.config_dir / f"{name}.yml" for name in self._configs_named()):
            if file.is_file():
                raise ConfigError(f"{file}: Hydra reads files that end in .yaml; name it so")

    def _configs_named(self) -> Iterator[str]:
        """The configs that words such as `model=net` and `hooks=+mine` look for."""
        for word in self.overrides:
            group, _, option = word.lstrip("+").partition("=")
            if group in SETS and SetEdits.matches(option):
                for name, choice in SetEdits.parse(group, option).added.items():
                    yield from (f"{group}/{name}", f"{group}/{name}/{choice or 'default'}")
            elif re.fullmatch(r"\w+(/\w+)*", group) and re.fullmatch(r"[\w.-]{1,99}", option):
                yield f"{group}/{option.removesuffix('.yml')}"

    def _check_sets(self) -> None:
        """Refuse `hooks=+ema hooks=-logger`, of which the last alone would count."""
        for group in SETS:
            options = [w.partition("=")[2] for w in self.overrides if w.startswith(f"{group}=")]
            if len(options) > 1:
                typed = " ".join(f"{group}={option}" for option in options)
                are_edits = all(SetEdits.matches(o) and "," not in o for o in options)
                together = f": {group}={''.join(options)}" if are_edits else ""
                raise ConfigError(f"{typed}: give {group}= once{together}")


def _check_edits(words: Sequence[str]) -> None:
    """Refuse `hooks=+ema, -logger`: a space parts what is one word."""
    for number, word in enumerate(words):
        group, _, edits = word.partition("=")
        if group not in SETS or not (SetEdits.matches(edits) or edits == ""):
            continue
        typed = [word]
        for other in words[number + 1 :]:
            is_edit = re.fullmatch(r"(?!--)[+,-][\w/,+-]*", other) and not _is_flag(other)
            is_name = re.fullmatch(r"[\w/]+,?", other) and typed[-1][-1] in "=+-,"
            if not (is_edit or is_name):
                break
            typed.append(other)
        if len(typed) > 1:
            names = re.findall(r",*([+-]?),*([\w/]+)", "".join(typed).partition("=")[2])
            signed = [f"{sign or '+'}{name}" for sign, name in names]
            sweep = {"-m", "--multirun"}.intersection(words)
            apart = f"; for a run with each: -m {group}={','.join(signed)}" if sweep else ""
            raise ConfigError(
                f"{' '.join(typed)}: all edits of a set are one word: "
                f"{group}={''.join(signed)}{apart}"
            )


def _is_flag(word: str) -> bool:
    return word in _SHORT or word in _TAKES_FOLDER or word in _TAKES_VALUE


def _check_config_path(flag: str, folder: str) -> None:
    """Refuse a folder in the place of this project's that has not all that a run needs."""
    if folder.startswith("pkg://"):
        return
    if not Path(folder).is_absolute() or not any(Path(folder).glob("*.yaml")):
        raise ConfigError(
            f"{flag} {folder}: would take the place of all configs of this project; configs of "
            f"your own go beside them: --config-dir {folder}"
        )


def _check_flag(flag: str, value: str) -> None:
    if not flag.startswith("--") and flag in _SHORT:
        return
    if flag.startswith("--") and any(known.startswith(flag) for known in FLAGS):
        return
    key = flag.lstrip("-")
    if not flag.startswith("--") and not value and len(key) > 2:
        raise ConfigError(
            f"{flag}: there is no such flag; what is taken away stands in the same word as what "
            f"is added: hooks=+NAME-{key}"
        )
    raise ConfigError(
        f"{flag}: there is no such flag{nearest(flag, FLAGS)}; what belongs to the config is "
        f"written without dashes: {key}={value or 'VALUE'}"
    )

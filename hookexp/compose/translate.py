"""What Hydra and OmegaConf say about a mistake, in the words of this project: who, what, instead.

Hydra raises the same few exception types for many mistakes and tells them apart in prose, so
some rules below read that prose. A message that no rule knows is shown as Hydra wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from hookexp.compose.command_line import FLAGS
from hookexp.compose.mistakes import (
    RULES,
    Case,
    experiment_with,
    needs_an_option,
    no_such_option,
    value_given,
)
from hookexp.compose.set_edits import SETS
from hookexp.compose.sources import config_folders, line_of
from hookexp.compose.wording import on_one_line, said
from hookexp.errors import ConfigError
from hookexp.hidden import hidden_module


def translate(error: BaseException, overrides: Sequence[str]) -> ConfigError | None:
    """The message for an error of the config; None for an error of something else.

    Args:
        error: what came out of Hydra.
        overrides: the `key=value` words of the command line.
    """
    chain = list(_chain(error))
    of_config = isinstance(error, (HydraException, OmegaConfBaseException, ConfigError))
    for link in chain:
        if said_of_it := hidden_module(link):
            return ConfigError(said_of_it)
        if isinstance(link, yaml.YAMLError):
            return _bad_yaml(link)
        if isinstance(link, UnicodeDecodeError) and (file := _file_with(link.object)):
            return ConfigError(f"{file}: is not UTF-8 ({link.reason}); save it as UTF-8")
        if of_config and isinstance(link, ConfigError):
            return link
    if isinstance(error, MissingConfigException):
        return _missing(error, overrides)
    if isinstance(error, OverrideParseException):
        return _unreadable(error, overrides)
    if isinstance(error, OmegaConfBaseException):
        return ConfigError(f"{error.full_key or 'config'}: {said(error)}")
    text = str(error)
    if of_config or text.startswith("Config group override"):
        for pattern, rule in RULES:
            match = re.search(pattern, text)
            if match:
                return _located(text, rule(Case(match[1], text, chain, overrides)))
    return ConfigError(_plain(chain)) if of_config else None


def in_its_file(mistake: ConfigError | None, overrides: Sequence[str]) -> ConfigError | None:
    """A mistake with the file and line before it, where it stands in a file of the user's."""
    found = re.match(r"[a-z]\w*(\.\w+)*", str(mistake))
    if mistake is None or found is None or not HydraConfig.initialized():
        return mistake
    path = found.group()
    choices = HydraConfig.get().runtime.choices
    typed = {word.lstrip("+~").partition("=")[0] for word in overrides} - set(choices)
    if any(key == path or key.startswith(f"{path}.") for key in typed):
        return mistake
    line = line_of(path, choices)
    if line is None or (line.is_ours and line.file.parent.name != "experiment"):
        return mistake
    return ConfigError(f"{line}: {mistake}")


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error, what caused it, what caused that."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _located(text: str, message: str) -> ConfigError:
    """Name the file whose defaults list holds the mistake, if it is not the command line."""
    where = re.match(r"In '([^']+)': ", text)
    if where and where[1] != "config" and not re.search(r"/[+-]", where[1]):
        return ConfigError(f"in {where[1]}.yaml: {message}")
    return ConfigError(message)


def _plain(chain: Sequence[BaseException]) -> str:
    texts = [str(link).split("\nConfig search path:")[0] for link in chain]
    causes = [said(link) for link in chain[1:] if isinstance(link, OmegaConfBaseException)]
    return ": ".join(on_one_line(text) for text in (texts[0], *causes[:1]) if text)


def _missing(error: MissingConfigException, overrides: Sequence[str]) -> ConfigError:
    group, _, option = (error.missing_cfg_file or "").rpartition("/")
    if group and not option:
        return ConfigError(needs_an_option(f"{group}="))
    if not option:
        return ConfigError(
            "--config-path: there is no such package; configs of your own go beside this "
            "project's with --config-dir FOLDER"
        )
    if not group:
        return ConfigError(
            f"--config-name {option}: there is no {option.removesuffix('.yaml')}.yaml beside "
            "config.yaml or in the folder of --config-dir; a run of your own is best a file "
            "experiment/NAME.yaml in that folder, chosen with experiment=NAME"
        )
    message = no_such_option(group, option)
    if value_given(group, overrides):
        return ConfigError(message)
    if (file := experiment_with(group, option, overrides)) is not None:
        return ConfigError(f"{file}: {message}")
    return _located(str(error), message)


def _unreadable(error: OverrideParseException, overrides: Sequence[str]) -> ConfigError:
    word = error.override
    if re.fullmatch(r"[+-]\w+", word) and any(w.startswith(SETS) for w in overrides):
        return ConfigError(
            f"{word}: what is added or taken away is one word, without spaces: hooks=+NAME{word}"
        )
    if f"--{word}" in FLAGS:
        return ConfigError(f"{word}: write --{word}")
    if "=" not in word or word.startswith("="):
        joined = re.sub(r"\s*=\s*", "=", " ".join(overrides)).split(" ")
        right = next((w for w in joined if "=" in w and word in w), f"{word}=VALUE")
        return ConfigError(
            f"{word!r}: not of the form KEY=VALUE; write it as one word, without spaces: {right}"
        )
    key, _, value = word.partition("=")
    if key.endswith("+"):
        key = key.rstrip("+")
        instead = f"{key}=+{value.lstrip('+')}" if key in SETS else f"{key}=VALUE"
        return ConfigError(f"{word}: there is no +=; write {instead}")
    if key.lstrip("+") in SETS and re.fullmatch(r"[\w+,~/-]+", value):
        together = re.sub(r",*[+]|,+", "+", value.replace("~", "-")).rstrip("+")
        return ConfigError(f"{word}: all edits of a set are one word: {key.lstrip('+')}={together}")
    return ConfigError(
        f"{word!r}: the value cannot be read; put quotes inside quotes around special characters: "
        f"'{key}=\"{value}\"', and lists in brackets: '{key}=[1,2]'"
    )


def _file_with(content: bytes) -> Path | None:
    """The file among the configs that begins with something."""
    files = (file for folder in config_folders() for file in folder.rglob("*.yaml"))
    return next((file for file in files if file.read_bytes().startswith(content)), None)


def _bad_yaml(error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or on_one_line(error)
    where = (
        f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else "a yaml file"
    )
    return ConfigError(f"{where}: not valid yaml: {problem}")

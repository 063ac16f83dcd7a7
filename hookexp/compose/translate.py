"""What Hydra and OmegaConf say about a mistake, in the words of this project: who, what, instead.

Hydra raises the same few exception types for many mistakes and tells them apart in prose, so
some rules below read that prose. A message that no rule knows is shown as Hydra wrote it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import yaml
from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf.errors import OmegaConfBaseException

from hookexp.compose.mistakes import RULES, Case, no_such_option, value_given
from hookexp.compose.wording import on_one_line, said
from hookexp.errors import ConfigError


def translate(error: BaseException, overrides: Sequence[str]) -> ConfigError | None:
    """The message for an error of the config; None for an error of something else.

    Args:
        error: what came out of Hydra.
        overrides: the `key=value` words of the command line.
    """
    chain = list(_chain(error))
    of_config = isinstance(error, (HydraException, OmegaConfBaseException, ConfigError))
    for link in chain:
        if isinstance(link, yaml.YAMLError):
            return _bad_yaml(link)
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
    if not group:
        return ConfigError(on_one_line(str(error).split("\nConfig search path:")[0]))
    message = no_such_option(group, option)
    if value_given(group, overrides):
        return ConfigError(message)
    return _located(str(error), message)


def _unreadable(error: OverrideParseException, overrides: Sequence[str]) -> ConfigError:
    word = error.override
    if "=" not in word or word.startswith("="):
        joined = re.sub(r"\s*=\s*", "=", " ".join(overrides)).split(" ")
        right = next((w for w in joined if "=" in w and word in w), f"{word}=VALUE")
        return ConfigError(
            f"{word!r}: not of the form KEY=VALUE; write it as one word, without spaces: {right}"
        )
    key, _, value = word.partition("=")
    return ConfigError(
        f"{word!r}: the value cannot be read; put quotes inside quotes around special characters: "
        f"'{key}=\"{value}\"', and lists in brackets: '{key}=[1,2]'"
    )


def _bad_yaml(error: yaml.YAMLError) -> ConfigError:
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or on_one_line(error)
    where = (
        f"{mark.name}, line {mark.line + 1}, column {mark.column + 1}" if mark else "a yaml file"
    )
    return ConfigError(f"{where}: not valid yaml: {problem}")

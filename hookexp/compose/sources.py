"""Which yaml file says what stands at a config path, on which line, and what its comment tells."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from hydra.core.global_hydra import GlobalHydra

from hookexp.compose.conf_dir import conf_dir
from hookexp.compose.set_edits import SETS, SetEdits
from hookexp.errors import ConfigError


@dataclass(frozen=True)
class Line:
    """One key in one yaml file."""

    file: Path
    number: int
    text: str
    value: str | None
    """As written; None for a mapping or a list."""

    @property
    def is_number(self) -> bool:
        value = None if self.value is None else yaml.safe_load(self.value)
        return isinstance(value, (int, float)) and not isinstance(value, bool)

    @property
    def may_be_a_list(self) -> bool:
        """Whether a number's comment says so, such as `or [[from_iter, n], ...]`."""
        return "[" in self.comment

    @property
    def comment(self) -> str:
        return self.text.partition(" #")[2].strip().partition("; null:")[0]

    @property
    def is_ours(self) -> bool:
        return self.file.is_relative_to(conf_dir())

    def __str__(self) -> str:
        name = self.file.relative_to(conf_dir()) if self.is_ours else self.file
        return f"{name}, line {self.number}"


def line_of(path: str, choices: Mapping[str, Any]) -> Line | None:
    """Where a config path stands; the file that has the last word is the one.

    Args:
        path: of the config, such as `hooks.checkpoint.interval`.
        choices: Hydra's choice per group.
    """
    for name, keys in _candidates(path.split("."), choices):
        for folder in config_folders():
            file = folder / f"{name}.yaml"
            if file.is_file() and (line := _find(file, keys)) is not None:
                return line
    return None


def check_files(choices: Mapping[str, Any]) -> None:
    """Refuse files of the user's that Hydra reads as something else than they were written for.

    Raises:
        ConfigError: for one that is empty, is no mapping, or whose first line Hydra cannot see.
    """
    for file in _files_chosen(choices):
        text = file.read_text(encoding="utf-8")
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        if not text.strip():
            raise ConfigError(f"{file}: is empty; {_WHAT_IT_NEEDS}")
        if text.startswith("\ufeff#"):
            raise ConfigError(
                f"{file}: begins with a byte order mark, behind which Hydra does not see a line "
                "such as `# @package _global_`; save it as UTF-8 without BOM"
            )
        if not isinstance(root, yaml.MappingNode | None):
            kind = "a list" if isinstance(root, yaml.SequenceNode) else "text"
            raise ConfigError(f"{file}: holds {kind}; {_WHAT_IT_NEEDS}")


_WHAT_IT_NEEDS = "a config holds keys and values (`key: value`)"


def _files_chosen(choices: Mapping[str, Any]) -> Iterator[Path]:
    """The files outside of this project that the options of groups stand in."""
    folders = [folder for folder in config_folders() if folder != conf_dir()]
    names = [f"{group}/{option}" for group, option in choices.items()] if folders else []
    for group in SETS:
        edits = str(choices.get(group))
        added = SetEdits.parse(group, edits).added if SetEdits.matches(edits) else {}
        for member, option in added.items():
            names += [f"{group}/{member}/{option or 'default'}", f"{group}/{member}"]
    for name in names:
        name = name.removesuffix(".yaml")
        files = (folder / f"{name}.yaml" for folder in folders)
        yield from (file for file in files if file.is_file())


def config_folders() -> list[Path]:
    """The folders of configs, in the order in which Hydra looks into them."""
    hydra = GlobalHydra.instance()
    if not hydra.is_initialized():
        return []
    sources = hydra.config_loader().get_sources()
    return [Path(source.path) for source in sources if source.scheme() == "file"]


def _candidates(keys: list[str], choices: Mapping[str, Any]) -> Iterator[tuple[str, list[str]]]:
    """Config names and the keys in them under which a path can stand, the last word first."""
    experiment = choices.get("experiment")
    if experiment:
        yield f"experiment/{experiment}", keys
    for depth in range(len(keys), 0, -1):
        group, rest = "/".join(keys[:depth]), keys[depth:]
        option = choices.get(group)
        if depth == 2 and keys[0] in SETS and option is None:
            option = _added_option(keys[0], keys[1], choices)
        for name in dict.fromkeys((option, "default")):
            if isinstance(name, str):
                yield f"{group}/{name}", rest
        if depth == 2 and keys[0] in SETS:
            yield group, rest
    yield "config", keys


def _added_option(group: str, name: str, choices: Mapping[str, Any]) -> str | None:
    edits = str(choices.get(group))
    return SetEdits.parse(group, edits).added.get(name) if SetEdits.matches(edits) else None


def _find(file: Path, keys: list[str]) -> Line | None:
    text = file.read_text(encoding="utf-8")
    node = yaml.compose(text, Loader=yaml.SafeLoader)
    mark = node.start_mark if node is not None else None
    for key in keys:
        pairs = node.value if isinstance(node, yaml.MappingNode) else ()
        found = next(((k, v) for k, v in pairs if k.value == key), None)
        if found is None:
            return None
        mark, node = found[0].start_mark, found[1]
    number = mark.line if mark is not None else 0
    value = node.value if isinstance(node, yaml.ScalarNode) else None
    return Line(file, number + 1, (text.splitlines() or [""])[number], value)

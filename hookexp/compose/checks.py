"""What can be wrong with a config and told without torch, so that the answer comes soon.

`check_config` runs before a run has a folder; `build` uses the same functions for what it needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from hookexp.compose.lr_find import for_lr_find
from hookexp.compose.mistakes import options_of
from hookexp.compose.named_sets import check_taken_away
from hookexp.compose.set_edits import SETS
from hookexp.compose.sources import check_files, line_of
from hookexp.compose.wording import listed, nearest
from hookexp.errors import ConfigError
from hookexp.settings import TrainerSettings

_GROUPS = ("data", "model", "task", "optimizer", "param_scheduler", "trainer", *SETS)
_KEYS = ("name", "mode", "seed", "resume", "load_from", "load_from_trusted", "resume_ignore")


def check_config(cfg: DictConfig, words: Sequence[str], choices: Mapping[str, Any]) -> None:
    """Refuse what no run can come of.

    Args:
        cfg: the composed config.
        words: the `key=value` words that were typed.
        choices: Hydra's choice per group.

    Raises:
        ConfigError: naming the config path.
    """
    check_files(choices)
    _check_top(cfg)
    _check_complete(cfg, words)
    _check_missing(cfg)
    check_taken_away(cfg, choices)
    check_name(cfg)
    _check_numbers(cfg, words, choices)
    settings_of(cfg)
    check_paths(cfg)
    if cfg.seed is not None:
        whole_number(cfg, "seed", 0)
    if isinstance(cfg.data, DictConfig):
        if cfg.data.get("batch_size", 1) is not None:
            whole_number(cfg.data, "batch_size", 1, "data.")
        whole_number(cfg.data, "num_workers", 0, "data.")
        for split in ("train", "val", "test"):
            if cfg.data.get(split) is not None:
                require_target(cfg.data[split], f"data.{split}")
    for name in ("model", "task"):
        require_target(cfg[name], name)
    run = for_lr_find(cfg) if cfg.mode == "lr_find" else cfg
    for group in (*SETS, "param_scheduler"):
        nodes_of(run, group)


def settings_of(cfg: DictConfig) -> TrainerSettings:
    """The settings of the group `trainer`."""
    values: Any = cfg.trainer
    if not isinstance(values, DictConfig):
        raise ConfigError(f"trainer={values}: has to be a mapping, such as max_epochs: 5")
    known = TrainerSettings.__dataclass_fields__
    for key in values:
        if key not in known:
            raise ConfigError(
                f"trainer.{key!s}: no such setting{nearest(str(key), known)}; there are: "
                f"{', '.join(known)}"
            )
    content: Any = OmegaConf.to_container(values, resolve=True)
    return TrainerSettings(**content).spelled_out()


def check_name(cfg: DictConfig) -> None:
    """Refuse a name that is none, or that would lead out of outputs/."""
    name = str(cfg.name)
    if cfg.name is None or not name.strip() or name.startswith("/") or ".." in Path(name).parts:
        raise ConfigError(
            f"name={'null' if cfg.name is None else name}: has to name a folder in outputs/, such "
            "as name=my_run or name=digits/small; hydra.run.dir=FOLDER puts a run elsewhere"
        )


def check_paths(cfg: DictConfig) -> None:
    """Refuse a checkpoint that is not there, and two at once."""
    for key in ("resume", "load_from"):
        path: Any = cfg[key]
        if path is not None and not isinstance(path, str):
            raise ConfigError(f"{key}={path}: use the path of a file or a folder")
        if path is not None and not path.strip():
            raise ConfigError(f"{key}=: is empty; give a file or a folder, or leave it out")
        if path is not None and path != "auto" and not Path(path).expanduser().exists():
            near = nearest(path, ["auto"]) if key == "resume" else ""
            raise ConfigError(f"{key}={path}: there is no such file or folder{near}")
    if cfg.load_from == "auto":
        raise ConfigError("load_from=auto: only resume knows auto; give a file or a folder")
    if cfg.resume is not None and cfg.load_from is not None:
        raise ConfigError(
            f"resume={cfg.resume} and load_from={cfg.load_from}: give one; resume continues a run, "
            "load_from takes the weights alone"
        )
    if not isinstance(cfg.load_from_trusted, bool):
        raise ConfigError(f"load_from_trusted={cfg.load_from_trusted}: use true or false")


def whole_number(cfg: DictConfig, key: str, least: int, prefix: str = "") -> int:
    """A whole number of the config.

    Raises:
        ConfigError: for anything else, or less than `least`.
    """
    value = cfg.get(key, least)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        shown = "null" if value is None else value
        raise ConfigError(f"{prefix}{key}={shown}: use a whole number, {least} or more")
    return value


def nodes_of(cfg: DictConfig, group: str) -> list[tuple[str, DictConfig]]:
    """The named parts of a group that are not null; each has to be a mapping with `_target_`."""
    parts = cfg[group] or {}
    if not isinstance(parts, Mapping):
        raise ConfigError(f"{group}={parts}: has to be a mapping of names to what they are made of")
    nodes = []
    for name, node in parts.items():
        if node is None:
            continue
        if name == "_target_":
            raise ConfigError(
                f"{group}._target_={node}: each of the {group} stands under a name of its own; for "
                f"{group}/NAME.yaml a defaults list has the line `- /{group}/NAME: default`"
            )
        require_target(node, f"{group}.{name}", f", or add it as a group: {group}=+{name}")
        nodes.append((str(name), node))
    return nodes


def require_target(node: Any, path: str, or_else: str = "") -> None:
    """Refuse a node of which nothing can be made."""
    if isinstance(node, DictConfig) and "_target_" in node:
        target: Any = node["_target_"]
        if isinstance(target, (int, float, type(None))):
            raise ConfigError(
                f"{path}._target_={'null' if target is None else target}: has to name a class or a "
                "function, such as my_module.MyClass"
            )
        return
    keys = [str(key) for key in node] if isinstance(node, DictConfig) else []
    wrong = next((key for key in ("target", "_target", "target_") if key in keys), None)
    if wrong is not None:
        raise ConfigError(f"{path}: has {wrong}: where _target_: belongs")
    if isinstance(node, str) and re.fullmatch(r"\w+(\.\w+)+", node):
        raise ConfigError(f"{path}={node}: names a class, which is written {path}._target_={node}")
    near = nearest(path.rpartition(".")[2], _siblings(node))
    raise ConfigError(
        f"{path}: has no _target_, so nothing can be made of it{near or f'; give it one{or_else}'}"
    )


def _siblings(node: Any) -> list[str]:
    """The names beside a node of which something can be made."""
    parent = node._get_parent() if isinstance(node, DictConfig) else None
    items = parent.items() if isinstance(parent, DictConfig) else ()
    return [str(k) for k, v in items if isinstance(v, DictConfig) and "_target_" in v]


def _check_top(cfg: DictConfig) -> None:
    """Refuse values of an experiment that went astray: in a key of its own, or in a near miss."""
    if isinstance(cfg.get("experiment"), DictConfig):
        raise ConfigError(
            "experiment: its values stand under `experiment`, where nobody reads them; make "
            "`# @package _global_` the first line of the file"
        )
    text = ""
    for key in map(str, cfg):
        near = nearest(key, (*_GROUPS, *_KEYS), cutoff=0.8)
        if key in (*_GROUPS, *_KEYS, "experiment", "hydra") or not near:
            continue
        text = text or OmegaConf.to_yaml(cfg)
        if not re.search(rf"\$\{{{re.escape(key)}\b", text):
            raise ConfigError(f"{key}: nobody reads this key of the config{near}")


def _check_complete(cfg: DictConfig, words: Sequence[str]) -> None:
    """Refuse a config that lacks a group or a key, as after `~optimizer`."""
    for key in (*_GROUPS, *_KEYS):
        if key not in cfg:
            word = next((w for w in words if w.partition("=")[0] == f"~{key}"), key)
            options = options_of(key)
            instead = f"{key}=OPTION: {listed(options)}" if options else f"{key}=VALUE"
            if "none" in options:
                instead = f"{key}=none"
            raise ConfigError(f"{word}: no run goes without this key of the config; use {instead}")


def _check_missing(cfg: DictConfig) -> None:
    for path in _missing(OmegaConf.to_container(cfg), ""):
        raise ConfigError(f"{path}: needs a value: {path}=VALUE")


def _missing(node: Any, path: str) -> Iterator[str]:
    if node == "???":
        yield path
    elif isinstance(node, dict):
        for key, item in node.items():
            if key != "hydra":
                yield from _missing(item, f"{path}.{key}" if path else str(key))


def _check_numbers(cfg: DictConfig, words: Sequence[str], choices: Mapping[str, Any]) -> None:
    """Refuse text that was typed for what is a number in this project's own configs."""
    for word in words:
        path, _, typed = word.partition("=")
        path = path.lstrip("+")
        if not re.fullmatch(r"\w+(\.\w+)+", path) or path.startswith("trainer."):
            continue
        value = OmegaConf.select(cfg, path)
        if isinstance(value, (int, float, type(None))) and not isinstance(value, bool):
            continue
        line = line_of(path, choices)
        if line is None or (isinstance(value, ListConfig) and line.may_be_a_list):
            continue
        if line.is_ours and line.is_number:
            comment = f" ({line.comment})" if line.comment else ""
            raise ConfigError(f"{path}={typed}: use a number, such as {line.value}{comment}")

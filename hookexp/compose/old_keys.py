"""Where one `_target_` has taken the place of another, the keys of the one before go.

`model._target_=my_module.Net`, or an experiment with `model: {_target_: my_module.Net}`, changes
one key of a mapping. The others were for the class before, and stay only where the new one has
such a parameter.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict, read_write

from hookexp.compose.conf_dir import conf_dir

_TAKEN_OUT_BEFORE = ("priority", "param_groups")
"""Keys beside a `_target_` that are not handed to it."""


def drop_keys_of_old_targets(cfg: DictConfig, words: Sequence[str]) -> None:
    """Drop what was neither given with a target nor after it, and is none of its parameters.

    What was given stays, so that a wrong one of those is told.

    Args:
        cfg: the composed config, which is changed.
        words: the `key=value` words that were typed.
    """
    layers = [*_layers_of_files(words), _paths_typed(words)]
    for number, layer in enumerate(layers):
        given = set().union(*layers[number:])
        for path in layer:
            if path.endswith("._target_"):
                _drop_others(cfg, path.removesuffix("._target_"), given)


def _drop_others(cfg: DictConfig, path: str, given: set[str]) -> None:
    node = OmegaConf.select(cfg, path)
    if not isinstance(node, DictConfig):
        return
    try:
        parameters = inspect.signature(hydra.utils.get_object(str(node._target_))).parameters
    except Exception:
        return  # `instantiate` says what is wrong with it.
    kept = (*parameters, *_TAKEN_OUT_BEFORE)
    for key in [k for k in node if str(k)[0] != "_" and k not in kept]:
        if f"{path}.{key!s}" not in given:
            with read_write(node), open_dict(node):
                del node[key]


def _paths_typed(words: Sequence[str]) -> set[str]:
    """The config paths of words, and of all that they are in."""
    keys = [word.lstrip("+~").partition("=")[0].split(".") for word in words]
    return {".".join(key[: depth + 1]) for key in keys for depth in range(len(key))}


def _layers_of_files(words: Sequence[str]) -> Iterator[set[str]]:
    """The config paths that each config of the user's gives, in the order of their merging."""
    hydra_of_run = GlobalHydra.instance()
    if not (HydraConfig.initialized() and hydra_of_run.is_initialized()):
        return
    loader = hydra_of_run.config_loader()
    sources = [source for source in loader.get_sources() if source.scheme() == "file"]
    if not any(map(_is_of_the_user, sources)):
        return
    name = HydraConfig.get().job.config_name
    composed = loader.compute_defaults_list(name, list(words), RunMode.RUN)
    for default in composed.defaults:
        path = str(default.config_path)
        source = next((s for s in sources if s.is_config(path)), None)
        if source is not None and _is_of_the_user(source):
            content = OmegaConf.to_container(source.load_config(path).config)
            yield set(_paths_in(content, default.package or ""))


def _is_of_the_user(source: Any) -> bool:
    return Path(source.path) != conf_dir()


def _paths_in(content: Any, prefix: str) -> Iterator[str]:
    for key, value in content.items() if isinstance(content, Mapping) else ():
        path = f"{prefix}.{key}".lstrip(".")
        yield path
        yield from _paths_in(value, path)

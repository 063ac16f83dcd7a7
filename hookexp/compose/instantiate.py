"""`instantiate`: makes the object a config node describes, and says in one message why it cannot.

Everything in a run that has a `_target_` is made here, so every mistake in such a node ends as a
`ConfigError` that names its config path. Hydra's own `instantiate` does the work, its policy of
refused targets (`os.system` and the like) included.
"""

from __future__ import annotations

import inspect
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import hydra.utils
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from hookexp import numeric
from hookexp.compose.conf_dir import IS_HYDRA_1_3
from hookexp.compose.imports import is_a_module, not_importable
from hookexp.compose.wording import listed, nearest, on_one_line, said
from hookexp.errors import ConfigError, add_note

_SPECIAL_KEYS = ("_target_", "_partial_", "_convert_", "_recursive_", "_args_")
_FULL_KEY = re.compile(r"\nfull_key: (\S+)\s*$")


def instantiate(node: DictConfig, path: str, *args: Any, **kwargs: Any) -> Any:
    """Call a node's `_target_` with its other keys; nested nodes are made first.

    Args:
        node: a mapping with `_target_`; with `_partial_: true` the result is to be called later,
            and mistakes found then are told in the same way.
        path: where the node stands in the config (`hooks.ema`), for messages.
        args: positional arguments for the target.
        kwargs: further keyword arguments; they win over the node's.

    Raises:
        ConfigError: for a target that cannot be imported, unknown or missing parameters, and
            values the target refuses with a ValueError, TypeError, OSError or ImportError. Any
            other error of the target is raised as it is, with a note.
    """
    root = _rooted_at(path, node)
    copy = OmegaConf.select(root, path)
    cause: BaseException | None = None
    try:
        made = hydra.utils.instantiate(copy, *args, _convert_="all", **kwargs)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {said(error)}") from error
    except SystemExit as error:
        where = _where(error, "")
        raise ConfigError(f"{path}: sys.exit() was called while it was made{where}") from error
    except Exception as error:
        problem, cause = _translated(error, root, path), _cause_of(error)
    else:
        return _checked_if_partial(made, copy, path)
    if problem is cause:
        raise problem  # Outside of the except clause, so that its own cause stays its cause.
    raise problem from cause


def _checked_if_partial(made: Any, node: DictConfig, path: str) -> Any:
    if hasattr(made, "func") and node.get("_partial_"):
        _check_parameters(made.func, _parameters_of(node), path, needs_all=False)
        return _Later(made, path, node)
    return made


class _Later:
    """A target with `_partial_: true`: what its call refuses is told like any other mistake."""

    def __init__(self, function: Callable[..., Any], path: str, node: DictConfig) -> None:
        self._function = function
        self._path = path
        self._node = node

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return self._function(*args, **kwargs)
        except Exception as error:
            cause = _cause_of(error) or error
        problem = _refusal(cause, self._node, self._path, "called")
        if problem is cause:
            raise problem
        raise problem from cause


def _rooted_at(path: str, node: DictConfig) -> DictConfig:
    """A config that holds a resolved copy of a node at its path, so that Hydra can tell it."""
    try:
        content = OmegaConf.to_container(node, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{_key_of(error, path)}: {said(error)}") from error
    content = _literal(content)
    for key in reversed(path.split(".")):
        content = {key: content}
    root = OmegaConf.create(content, flags={"allow_objects": True})
    assert isinstance(root, DictConfig)
    return root


def _key_of(error: OmegaConfBaseException, path: str) -> str:
    """The full config path of an error inside the node at `path`."""
    key = str(error.full_key or "")
    return key if key.startswith(path) else f"{path}.{key}".rstrip(".")


def _literal(value: Any) -> Any:
    """The value with `${` escaped for each time that Hydra resolves on the way to a call."""
    if isinstance(value, str):
        return value.replace("${", r"\\\${" if IS_HYDRA_1_3 else r"\${")
    if isinstance(value, dict):
        return {key: _literal(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_literal(item) for item in value]
    return value


def _cause_of(error: Exception) -> BaseException | None:
    """What a target raised; hydra-core 1.4 no longer wraps it."""
    return error.__cause__ if isinstance(error, InstantiationException) else error


def _translated(error: Exception, root: DictConfig, path: str) -> BaseException:
    """What to raise for what came out of Hydra when it imported and called targets."""
    cause = _cause_of(error)
    text = str(error) if cause is not error else "".join(_taken_notes(error))
    found = _FULL_KEY.search(text)
    path = found.group(1) if found else path
    node = OmegaConf.select(root, path)
    if cause is None and "Expected a callable target" in text and "'module'" in text:
        return is_a_module(str(node["_target_"]), path)
    if text.startswith("Error locating target"):
        return not_importable(node["_target_"], path)
    if cause is None:
        return ConfigError(f"{path}: {on_one_line(_FULL_KEY.sub('', text))}")
    return _refusal(cause, node, path)


def _taken_notes(error: Exception) -> list[str]:
    """Where Hydra says an error came from, which is ours to say, taken out of its notes."""
    notes: list[str] = getattr(error, "__notes__", [])
    taken = [f"\n{note}" for note in notes if _FULL_KEY.fullmatch(f"\n{note}")]
    notes[:] = [note for note in notes if f"\n{note}" not in taken]
    return taken


def _refusal(cause: BaseException, node: Any, path: str, done: str = "made") -> BaseException:
    """What to raise for an error that a target's call raised."""
    target = str(node["_target_"])
    given = _parameters_of(node)
    name = target.rpartition(".")[2]
    if isinstance(cause, TypeError):
        needs_all = not node.get("_partial_", False)
        called = hydra.utils.get_object(target)
        try:
            _check_parameters(called, given, path, needs_all)
        except ConfigError as mistake:
            return mistake
        if lacking := _methods_left_out(called):
            return ConfigError(f"{path}._target_={target}: the class lacks {listed(lacking)}")
    if isinstance(cause, ValueError):
        return ConfigError(f"{_with_path(str(cause), path, name, given)}{_where(cause, target)}")
    if isinstance(cause, (TypeError, OSError, ImportError)):
        values = ", ".join(f"{key}={value!r}" for key, value in given.items())
        return ConfigError(
            f"{path}: {name}({values}) failed with {type(cause).__name__}: "
            f"{cause}{_where(cause, target)}"
        )
    add_note(cause, f"while {path} was {done} ({target})")
    return cause


def _methods_left_out(called: Any) -> list[str]:
    """What a class has to have and has not, such as `val_step(self, model, batch)` of a task."""
    names = sorted(getattr(called, "__abstractmethods__", ()))
    parameters = (inspect.signature(getattr(called, name)).parameters for name in names)
    return [f"{n}({', '.join(taken)})" for n, taken in zip(names, parameters, strict=True)]


def _with_path(text: str, path: str, name: str, given: Mapping[str, Any]) -> str:
    """A target's message with the config path before it; `interval=0: ...` becomes part of it."""
    if text.startswith(path):
        return text
    parameter = re.match(r"\w+", text)
    if parameter and parameter.group() in given and text[parameter.end() :][:1] in ("=", ".", ":"):
        return f"{path}.{text}"
    return f"{path} ({name}): {text}"


def _where(cause: BaseException, target: str) -> str:
    """The line that raised, unless it is in the module of the target and so near the reader.

    A check of `numeric` counts as the line that calls it.
    """
    frames = [
        f for f in traceback.extract_tb(cause.__traceback__) if f.filename != numeric.__file__
    ]
    if not frames:
        return ""
    last = frames[-1]
    near = target.rpartition(".")[0].replace(".", "/") + ".py"
    if last.filename.replace("\\", "/").endswith(near) and isinstance(cause, ValueError):
        return ""
    return f" ({Path(last.filename).name}, line {last.lineno})"


def _parameters_of(node: Any) -> Mapping[str, Any]:
    return {str(key): node[key] for key in node if key not in _SPECIAL_KEYS}


def _check_parameters(
    target: Callable[..., Any], given: Mapping[str, Any], path: str, needs_all: bool
) -> None:
    """Refuse parameters that a target does not have, and missing ones if it `needs_all`."""
    try:
        parameters = list(inspect.signature(target).parameters.values())
    except (TypeError, ValueError):
        return  # Some built-in functions cannot tell.
    names = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    label = getattr(target, "__qualname__", str(target))
    for key in given:
        if key not in names and not takes_any:
            raise ConfigError(
                f"{path}.{key}: {label} has no parameter {key!r}; it has: "
                f"{listed(names)}{nearest(key, names)}"
            )
    missing = _without_value(parameters, given)
    if missing and needs_all:
        raise ConfigError(
            f"{path}: {label} needs {listed(missing)}; give {path}.{missing[0]}=VALUE "
            f"(with + before it if the config has no such key){_if_for_later(target, path)}"
        )


def _if_for_later(target: Callable[..., Any], path: str) -> str:
    """What an optimizer, or a function for a loss, needs in place of its parameters."""
    group = path.partition(".")[0]
    is_function = group in ("task", "data") and not inspect.isclass(target)
    if group != "optimizer" and not is_function:
        return ""
    return f"; to have it called with them later: _partial_: true (+{path}._partial_=true)"


def _without_value(parameters: Sequence[inspect.Parameter], given: Mapping[str, Any]) -> list[str]:
    named = (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [
        p.name
        for p in parameters
        if p.kind in named and p.default is p.empty and p.name not in given
    ]

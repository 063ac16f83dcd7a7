"""Why the `_target_` of a config node cannot be imported, and what to write instead."""

from __future__ import annotations

import inspect
import re
import traceback
from importlib import import_module
from pathlib import Path
from types import ModuleType

from hookexp.compose.wording import listed, nearest
from hookexp.errors import ConfigError

_SHORT_FOR_TORCH = ("nn.", "optim.", "utils.data.")
_MANY_NAMES = 20


def not_importable(target: str, path: str) -> ConfigError:
    """The message for the target of the node at `path` (`hooks.ema`); imports its module again."""
    given = f"{path}._target_={target}"
    module, _, name = target.rpartition(".")
    if (as_file := re.fullmatch(r"(?:\./)?([\w/]+)\.py(?::+(\w+))?", target)) is not None:
        dotted = f"{as_file[1].strip('/').replace('/', '.')}.{as_file[2] or 'NAME'}"
        return ConfigError(f"{given}: is a file; name what is in it as Python does: {dotted}")
    if not module:
        return ConfigError(
            f"{given}: has no module; write MODULE.{name}, where MODULE is the name of its file "
            "without .py"
        )
    try:
        return ConfigError(f"{given}: {_lacks(import_module(module), name)}")
    except SyntaxError as error:
        file = Path(str(error.filename)).name
        return ConfigError(f"{given}: {file}, line {error.lineno}: {error.msg}")
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{module}.".startswith(f"{error.name}."):
            return ConfigError(
                f"{given}: cannot be imported, there is no module {error.name}; {_advice(target)}"
            )
        line = _raising_line(error)
        return ConfigError(
            f"{given}: importing {module} failed: {line}{type(error).__name__}: {error}"
        )


def is_a_module(target: str, path: str) -> ConfigError:
    """The message for a target that is a module, where something in it has to be named."""
    own = _own_names(import_module(target))
    return ConfigError(
        f"{path}._target_={target}: is a module; name what is to be called in it: "
        f"{path}._target_={target}.{own[0] if own else 'CLASS'} ({target} has: {listed(own)})"
    )


def _lacks(module: ModuleType, name: str) -> str:
    near = nearest(name, (n for n in vars(module) if not n.startswith("_")))
    own = _own_names(module)
    is_short = own and len(own) <= _MANY_NAMES
    it_has = f"; it has: {listed(own)}" if is_short and "." not in module.__name__ else ""
    return f"{module.__name__} has no {name!r}{near}{it_has}"


def _advice(target: str) -> str:
    if target.startswith(_SHORT_FOR_TORCH):
        return f"did you mean torch.{target}?"
    return (
        "write MODULE.NAME of a module in the current folder, in the folder of --config-dir, or "
        "installed"
    )


def _own_names(module: ModuleType) -> list[str]:
    """The public classes and functions that a module defines itself, classes first."""
    items = vars(module).items()
    own = [
        (name, value)
        for name, value in items
        if name[0] != "_" and getattr(value, "__module__", None) == module.__name__
    ]
    own.sort(key=lambda item: not inspect.isclass(item[1]))
    return [name for name, value in own if callable(value)]


def _raising_line(error: Exception) -> str:
    """`file.py, line 3: ` of a module that raised while it was imported."""
    trace = traceback.extract_tb(error.__traceback__)
    frames = [f for f in trace if "importlib" not in f.filename and f.filename != __file__]
    return f"{Path(frames[-1].filename).name}, line {frames[-1].lineno}: " if frames else ""

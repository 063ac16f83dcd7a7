"""Which option or override put a member of a set (a hook, a sink) into a composition."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.types import RunMode

from hookexp.compose.set_edits import SetEdits


class Origins:
    """Tells what put members there, in the composition of the words of a command line."""

    def __init__(self, overrides: Sequence[str], config_name: str = "config") -> None:
        self._overrides = overrides
        self._config_name = config_name

    def of(self, group: str, name: str) -> str:
        """As one would type it: `hooks=default`, `hooks=+ema`, `hooks/ema=swa`, `experiment=x`."""
        for override in reversed(self._overrides):
            key = override.partition("=")[0]
            if re.fullmatch(rf"\+?{group}/{name}", key):
                return override
            if re.fullmatch(rf"\+\+?{group}\.{name}(\._target_)?", key):
                return key
        parent = self.parent_of(group, name)
        if parent is None:
            return "config"
        swapped = self._swapped_by(group, name)
        typed = _edit_of(group, name, parent) or _as_typed(parent)
        return f"{typed}, {swapped}" if swapped and typed != swapped else typed

    def parent_of(self, group: str, name: str) -> str | None:
        """The config in whose defaults list a member stands."""
        prefix = f"{group}/{name}/"
        for default in self._composed.defaults:
            parent = str(default.parent)
            if f"{default.config_path}/".startswith(prefix) and not parent.startswith(prefix):
                return parent
        return None

    def _swapped_by(self, group: str, name: str) -> str | None:
        """`experiment=x` if it swaps a member's option for another."""
        meta = self._composed.overrides.override_metadata.get(f"{group}/{name}")
        if meta is None or meta.external_override or meta.containing_config_path is None:
            return None
        return _as_typed(meta.containing_config_path)

    @cached_property
    def _composed(self) -> Any:
        return (
            GlobalHydra.instance()
            .config_loader()
            .compute_defaults_list(
                config_name=self._config_name,
                overrides=list(self._overrides),
                run_mode=RunMode.RUN,
            )
        )


def who_has_on(group: str, name: str, overrides: Sequence[str]) -> str:
    """` (experiment=x)`: what has a member on beside the `+name` of an override."""
    plain = [word for word in overrides if word.startswith(f"+{group}/{name}=")]
    rest = [word for word in overrides if word not in plain]
    others = [_without(group, name, word) for word in rest]
    if plain and others != rest:
        return f" ({plain[0]})"
    try:
        parent = Origins([word for word in others if word]).parent_of(group, name)
    except Exception:
        return ""  # The overrides hold a second mistake; the first one is message enough.
    return f" ({_as_typed(parent)})" if parent else ""


def _edit_of(group: str, name: str, config_path: str) -> str | None:
    """The part of `hooks=+ema/swa+early_stopping` that adds one member."""
    option = config_path.partition("/")[2]
    if not SetEdits.matches(option):
        return None
    choice = SetEdits.parse(group, option).added.get(name)
    return f"{group}=+{name}" + (f"/{choice}" if choice else "")


def _as_typed(config_path: str) -> str:
    group, _, option = config_path.partition("/")
    if not SetEdits.matches(option):  # `hooks/+ema/swa` is option `+ema/swa` of `hooks`.
        group, _, option = config_path.rpartition("/")
    return f"{group}={option}" if group else f"{option}.yaml"


def _without(group: str, name: str, override: str) -> str:
    """An override without its edit that adds a member; empty if nothing is left."""
    key, _, option = override.partition("=")
    if key != group or not SetEdits.matches(option):
        return override
    edits = SetEdits.parse(group, option)
    kept = [f"+{n}/{o}" if o else f"+{n}" for n, o in edits.added.items() if n != name]
    kept += [f"-{n}" for n in edits.removed]
    return f"{key}={''.join(kept)}" if kept else ""

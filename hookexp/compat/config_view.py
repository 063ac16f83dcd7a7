"""The composed config and the run's folders, as published hooks read them."""

from __future__ import annotations

import pprint
from collections.abc import Mapping
from pathlib import Path
from typing import Any


class FolderName(str):
    """A folder as the text that published hooks expect, which also does what a Path does."""

    __slots__ = ()

    def __truediv__(self, name: str) -> Path:
        return Path(self) / name

    def __getattr__(self, name: str) -> Any:
        return getattr(Path(self), name)


class ConfigView(dict[str, Any]):
    """A copy of the composed config, whose keys are attributes as well, to read and to set."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        super().__init__({key: _viewed(value) for key, value in config.items()})

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no key {name!r}") from None

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = _viewed(value)

    def copy(self) -> ConfigView:
        return ConfigView(self)

    def __deepcopy__(self, memo: Any) -> ConfigView:
        return ConfigView(self)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain dicts."""
        return {key: _plain(value) for key, value in self.items()}

    @property
    def pretty_text(self) -> str:
        return pprint.pformat(self.to_dict(), sort_dicts=False)


def _viewed(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ConfigView(value)
    return [_viewed(item) for item in value] if isinstance(value, list) else value


def _plain(value: Any) -> Any:
    if isinstance(value, ConfigView):
        return value.to_dict()
    return [_plain(item) for item in value] if isinstance(value, list) else value

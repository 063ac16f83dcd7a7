"""The grammar of `+ema/swa-iter_timer`."""

from __future__ import annotations

import re
from dataclasses import dataclass

from hookexp.errors import ConfigError

SETS = ("hooks", "sinks")
"""The groups whose members have names and are groups of their own."""
_EDIT = re.compile(r"([+-])([^+-]*)")


@dataclass(frozen=True)
class SetEdits:
    """What an option such as `+ema/swa-iter_timer` asks for."""

    added: dict[str, str | None]
    """Member name to the option of its group, None where none was written."""
    removed: tuple[str, ...]

    @staticmethod
    def matches(option: str) -> bool:
        return option[:1] in ("+", "-")

    @staticmethod
    def parse(group: str, option: str) -> SetEdits:
        """Read an option of `group`.

        Raises:
            ConfigError: for spaces, a sign without a name, or a name that comes twice.
        """
        together = re.sub(r"\s", "", option)
        if together != option:
            raise ConfigError(
                f"{group}={option}: all edits of a set are one word: {group}={together}"
            )
        added: dict[str, str | None] = {}
        removed: list[str] = []
        for sign, member in _EDIT.findall(option):
            name, _, choice = member.partition("/")
            if not name or ("/" in member and not choice):
                raise ConfigError(
                    f"{group}={option}: {sign}{member} is not a name; write {group}=+NAME, "
                    f"{group}=+NAME/OPTION, {group}=-NAME, or several: {group}=+ONE+TWO-THREE"
                )
            if name in added or name in removed:
                raise ConfigError(
                    f"{group}={option}: {name} comes twice; another option of one member is "
                    f"{group}=+{name}/OPTION"
                )
            if sign == "+":
                added[name] = choice or None
            elif choice:
                raise ConfigError(f"{group}={option}: to take {name} away write {group}=-{name}")
            else:
                removed.append(name)
        return SetEdits(added, tuple(removed))

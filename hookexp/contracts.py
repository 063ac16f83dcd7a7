"""What hooks say about each other: who has to be there, who must not, who is called first.

A hook declares it by name, as class attributes (`requires`, `conflicts`, `before`, `after`), so
that neither hook knows the other's class. Broken, it is told when the hooks are put together; a
wrong order would otherwise show as a slightly wrong number, hours later or never.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hookexp.errors import ConfigError

if TYPE_CHECKING:
    from hookexp.listeners import HookEntry

KINDS = ("requires", "conflicts", "before", "after")
_WORDS = {
    "requires": "requires",
    "conflicts": "cannot be beside",
    "before": "is called before",
    "after": "is called after",
}


@dataclass(frozen=True)
class Contract:
    """One line of what a hook declares: `ema` `before` `checkpoint`."""

    hook: str
    kind: str
    other: str

    def __str__(self) -> str:
        return f"{self.hook} {_WORDS[self.kind]} {self.other}"


def contracts_of(entry: HookEntry) -> list[Contract]:
    """The contracts a hook's class declares.

    Raises:
        ConfigError: for a class attribute that is not a tuple of names.
    """
    declared = []
    for kind in KINDS:
        names = getattr(type(entry.hook), kind, ())
        if callable(names) or isinstance(names, property):
            continue  # A method of a foreign class that merely has the same name.
        if not isinstance(names, (tuple, list)) or not all(isinstance(n, str) for n in names):
            raise ConfigError(
                f"hooks.{entry.name}: {type(entry.hook).__name__}.{kind} is {names!r}; use a tuple "
                "of hook names, such as ('checkpoint',)"
            )
        declared += [Contract(entry.name, kind, name) for name in names]
    return declared


def applying(entries: Sequence[HookEntry]) -> list[Contract]:
    """The contracts that decide something in this run: those with a hook that is there."""
    present = {entry.name for entry in entries}
    return [c for entry in entries for c in contracts_of(entry) if c.other in present]


def check_contracts(entries: Sequence[HookEntry]) -> None:
    """Refuse hooks that do not go together, or not in this order.

    Args:
        entries: all hooks of the run in call order.

    Raises:
        ConfigError: naming both hooks, their priorities and what to change.
    """
    position = {entry.name: index for index, entry in enumerate(entries)}
    for entry in entries:
        for contract in contracts_of(entry):
            other = entries[position[contract.other]] if contract.other in position else None
            if other is None and contract.kind == "requires":
                raise ConfigError(
                    f"{_named(entry)} requires hooks.{contract.other}, which this run does not "
                    f"have: add it with hooks=+{contract.other}, or drop hooks=-{entry.name}"
                )
            if other is None or contract.kind == "requires":
                continue
            if contract.kind == "conflicts":
                raise ConfigError(
                    f"{_named(entry)} cannot be in one run with {_named(other)}: "
                    f"drop one, hooks=-{other.name} or hooks=-{entry.name}"
                )
            first, second = (entry, other) if contract.kind == "before" else (other, entry)
            if position[first.name] > position[second.name]:
                raise ConfigError(_wrong_order(entry, first, second))


def _wrong_order(declarer: HookEntry, first: HookEntry, second: HookEntry) -> str:
    ways = []
    if second.priority > 0:
        ways.append(f"hooks.{first.name}.priority={min(first.priority, second.priority - 1)}")
    if first.priority < 100:
        ways.append(f"hooks.{second.name}.priority={max(second.priority, first.priority + 1)}")
    return (
        f"{_named(first)} has to be called before {_named(second)}, as hooks.{declarer.name} "
        f"({type(declarer.hook).__name__}) declares, and would be called after it: "
        f"set {' or '.join(ways)}"
    )


def _named(entry: HookEntry) -> str:
    return f"hooks.{entry.name} (priority {entry.priority})"

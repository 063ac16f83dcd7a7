"""Hooks of somebody's own that keep something and do not save it, which a run tells once."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from typing import Any

from hookexp.checkpoint.attributes import Began
from hookexp.checkpoint.digest import Digest
from hookexp.checkpoint.trace import trace
from hookexp.hook import Hook
from hookexp.listeners import HookEntry

logger = logging.getLogger("hookexp")


class StatelessHooks:
    """Made when training begins: what a hook has by then, the config and its own code say.

    It is told and not held, since only its author knows whether an attribute is a count or a time
    on this machine's clock. Hooks written for other programs are left alone: those have no states.
    """

    def __init__(self, entries: Iterable[HookEntry]) -> None:
        self._entries = [entry for entry in entries if _is_without_state(entry.hook)]
        self._began = {entry.name: Began(entry.hook, trace) for entry in self._entries}

    def tell(self) -> None:
        """Warn about those that are not what they were; called at a save."""
        for entry in [*self._entries]:
            changes = [*self._began[entry.name].changes(entry.hook)]
            Digest.read(d for *_, was, now in changes for d in (*was.digests, *now.digests))
            names = [name for name, _, was, now in changes if not now.is_of_the_same_as(was)]
            if names:
                self._entries.remove(entry)
                logger.warning(
                    "hooks.%s: %s changes %s and has no state_dict, so a resumed run begins anew "
                    "with that; give it state_dict and load_state_dict; if nothing depends on it "
                    "the first may return {}",
                    *(entry.name, type(entry.hook).__name__, ", ".join(names)),
                )


def _is_without_state(hook: Any) -> bool:
    """Whether it has none, and comes from no hook of ours, which know what they keep."""
    bases = [base for base in type(hook).__mro__ if base.__module__.startswith("hookexp.")]
    return bases == [Hook] and not hasattr(hook, "state_dict")

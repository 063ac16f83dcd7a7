"""Hooks of somebody's own that keep something and do not save it, which a run tells once."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING, Any

from hookexp.checkpoint.attributes import Began, attributes_of
from hookexp.checkpoint.digest import Digest, digests
from hookexp.checkpoint.own_objects import objects_in
from hookexp.checkpoint.plain_form import is_long
from hookexp.checkpoint.trace import trace
from hookexp.checkpoint.unlisted import parts_at, parts_of, tensors_in
from hookexp.hook import Hook

if TYPE_CHECKING:
    from hookexp.runner import Runner

logger = logging.getLogger("hookexp")


class StatelessHooks:
    """Made when training begins: what a hook has by then, the config and its own code say.

    It is told and not held, since only its author knows whether an attribute is a count or a time
    on this machine's clock. Hooks written for other programs are left alone: those have no states.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._entries = [entry for entry in runner.hooks.entries if _is_without_state(entry.hook)]
        self._began = {
            entry.name: {where: Began(owner, trace) for where, owner in _owners(entry.hook)}
            for entry in self._entries
        }
        self._weights = {entry.name: self._weights_of(entry.hook) for entry in self._entries}

    def tell(self) -> None:
        """Warn about those that are not what they were; called at a save."""
        for entry in [*self._entries]:
            began = self._began[entry.name]
            owners = [(where, owner) for where, owner in _owners(entry.hook) if where in began]
            changes = [(w, *change) for w, owner in owners for change in began[w].changes(owner)]
            Digest.read(d for *_, was, now in changes for d in (*was.digests, *now.digests))
            changed = [one for one in changes if not one[-1].is_of_the_same_as(one[-2])]
            names = [f"{where}.{name}".removeprefix("self.") for where, name, *_ in changed]
            known = self._weights[entry.name]
            for name, weights in self._weights_of(entry.hook).items():
                # What is made late is as it should be at first.
                if known.setdefault(name, weights) != weights:
                    names.append(name)
            if names:
                self._entries.remove(entry)
                logger.warning(
                    "hooks.%s: %s changes %s and has no state_dict, so a resumed run begins anew "
                    "with that; give it state_dict and load_state_dict; if nothing depends on it "
                    "the first may return {}",
                    *(entry.name, type(entry.hook).__name__, ", ".join(names)),
                )

    def _weights_of(self, hook: Any) -> dict[str, list[int | None]]:
        """Digests of the modules and weights that a hook alone has, by attribute."""
        found = {
            name: [t for _, part in parts_at(value, name) for _, t in tensors_in(part)]
            for name, value in attributes_of(hook).items()
            if not is_long(value)  # It takes long to go through, such as all losses so far.
        }
        if not any(found.values()):
            return {}
        model, task = self._runner.model, self._runner.task
        parts = chain([model], (part for _, part in parts_of(task)))
        of_the_run = {id(tensor) for part in parts for _, tensor in tensors_in(part)}
        own = {name: [t for t in found[name] if id(t) not in of_the_run] for name in found}
        return {name: digests(tensors) for name, tensors in own.items() if tensors}


def _owners(hook: Any) -> Iterator[tuple[str, Any]]:
    """A hook and its objects, by path."""
    yield "self", hook
    yield from objects_in([("self", hook)])


def _is_without_state(hook: Any) -> bool:
    """Whether it has none, and comes from no hook of ours, which know what they keep."""
    bases = [base for base in type(hook).__mro__ if base.__module__.startswith("hookexp.")]
    return bases == [Hook] and not hasattr(hook, "state_dict")

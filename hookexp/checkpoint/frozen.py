"""`Frozen`: what of the model does not learn, where hooks without a state change that."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hookexp import dist

logger = logging.getLogger("hookexp")
_SHOWN = 4


@dataclass(frozen=True)
class _Switch:
    """Something that is on in all parts of a model at first, and off in those that are told."""

    of: str
    """The method of a module that names the parts."""
    attribute: str
    is_off: str
    """How it is told of parts in which it was on in the checkpoint."""
    is_on: str

    def parts(self, model: nn.Module) -> dict[str, Any]:
        return dict(getattr(model, self.of)())

    def off_in(self, model: nn.Module) -> list[str]:
        return [n for n, part in self.parts(model).items() if not getattr(part, self.attribute)]


_SWITCHES = {
    "": _Switch(
        of="named_parameters",
        attribute="requires_grad",
        is_off="are frozen now and learned in the checkpoint",
        is_on="learn now and were frozen in the checkpoint",
    ),
    "modules_": _Switch(
        of="named_modules",
        attribute="training",
        is_off="are in evaluation mode now and were not in the checkpoint",
        is_on="are in training mode now and were not in the checkpoint",
    ),
}
"""Parameters that learn, and modules in training mode, by what their keys in a state begin with."""


class Frozen:
    """Holds beside the present answer that of the start, by which a resumed run knows its config.

    A part that the config and the hooks leave at the start of training as they did in the run
    before is as it was in the checkpoint: a hook has changed it since. One that they leave
    otherwise, as where a hook was added or taken out, stays as they say, and a line says so.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = dist.unwrap(model)
        self.note_start()

    def note_start(self) -> None:
        """Called when `before_train` is over, in a resumed run as well."""
        self._at_start = {key: s.off_in(self._model) for key, s in _SWITCHES.items()}

    def state_dict(self) -> dict[str, list[str]]:
        state = {}
        for key, switch in _SWITCHES.items():
            state[f"{key}at_start"] = self._at_start[key]
            state[f"{key}now"] = switch.off_in(self._model)
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned; once the start was noted."""
        for key, switch in _SWITCHES.items():
            if f"{key}now" in state:
                before = {*state[f"{key}at_start"]}
                self._put_back(switch, {*state[f"{key}now"]}, before ^ {*self._at_start[key]})

    def _put_back(self, switch: _Switch, off: Collection[str], configured: Collection[str]) -> None:
        told: dict[bool, list[str]] = {False: [], True: []}
        for name, part in switch.parts(self._model).items():
            is_on = getattr(part, switch.attribute)
            if is_on == (name not in off):
                continue
            if name in configured:
                told[is_on].append(name)
            else:
                setattr(part, switch.attribute, not is_on)
        _tell(told[False], switch.is_off)
        _tell(told[True], switch.is_on)


def _tell(names: Collection[str], what: str) -> None:
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        shown = ", ".join([name or "the model" for name in names][:_SHOWN])
        logger.warning("resume: %s%s: %s", shown, more, what)

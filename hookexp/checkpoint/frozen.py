"""`Frozen`: which parameters of the model do not learn, where hooks without a state change that."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from typing import Any

from torch import nn

from hookexp import dist

logger = logging.getLogger("hookexp")
_SHOWN = 4


class Frozen:
    """Holds beside the present answer that of the start, by which a resumed run knows its config.

    A parameter that the config and the hooks leave at the start of training as they did in the run
    before is as it was in the checkpoint: a hook has changed it since. One that they leave
    otherwise, as where a hook was added or taken out, stays as they say, and a line says so.
    """

    def __init__(self, model: nn.Module) -> None:
        self._model = dist.unwrap(model)
        self._at_start = {*self._now()}

    def note_start(self) -> None:
        """Called when `before_train` is over, in a resumed run as well."""
        self._at_start = {*self._now()}

    def state_dict(self) -> dict[str, list[str]]:
        return {"at_start": sorted(self._at_start), "now": self._now()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Put back what `state_dict` returned; once the start was noted."""
        before, at_start = {*state["now"]}, {*state["at_start"]}
        changed: dict[bool, list[str]] = {False: [], True: []}
        for name, parameter in self._model.named_parameters():
            learned = name not in before
            if learned == parameter.requires_grad:
                continue
            if (name in at_start) == (name in self._at_start):
                parameter.requires_grad_(learned)
            else:
                changed[learned].append(name)
        _tell(changed[True], "are frozen now and learned in the checkpoint")
        _tell(changed[False], "learn now and were frozen in the checkpoint")

    def _now(self) -> list[str]:
        return [n for n, parameter in self._model.named_parameters() if not parameter.requires_grad]


def _tell(names: Collection[str], what: str) -> None:
    if names:
        more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
        logger.warning("resume: %s%s: %s", ", ".join([*names][:_SHOWN]), more, what)

"""Numbers in parameter groups, where hooks change them when training begins and later on."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

_Groups = Sequence[dict[str, Any]]
_NUMBERS = (bool, int, float, tuple)
_OF_HOOKS = "capturable"
"""What a hook sets for a step that is captured, whatever the run before had."""


class GroupValues:
    """Has `before_train` of a resumed run find the config's values, as it did in the run before.

    A hook that halves a learning rate there would else halve it twice. What training has made of a
    value is put back afterwards, if it begins as it did; else it is as config and hooks say now.
    """

    def __init__(self, optimizers: Mapping[str, Optimizer]) -> None:
        self._optimizers = optimizers
        self._at_start: dict[str, _Groups] = {}
        self._held_back: dict[str, _Groups] = {}
        self._started_as: Mapping[str, _Groups] = {}

    def note_start(self, scheduled: Collection[str]) -> None:
        """Called when `before_train` is over, in a resumed run as well.

        Args:
            scheduled: entries that follow from where the run is.
        """
        self._at_start = self._now(left_out=scheduled)

    def state_dict(self) -> dict[str, _Groups]:
        return self._at_start

    def hold_back(
        self, started_as: Mapping[str, _Groups], configured: Mapping[str, _Groups]
    ) -> None:
        """Set the config's values, once those that were saved are loaded."""
        self._held_back, self._started_as = self._now(), started_as
        for name, optimizer in self._optimizers.items():
            for group, given in zip(optimizer.param_groups, configured[name], strict=False):
                held_back = {k: v for k, v in given.items() if type(group.get(k)) in _NUMBERS}
                group.update({k: v for k, v in held_back.items() if k != _OF_HOOKS})

    def put_back(self) -> None:
        """Once the start was noted."""
        for name, held_back in self._held_back.items():
            groups = self._optimizers[name].param_groups
            starts = self._at_start[name], self._started_as.get(name, ())
            for group, held, start, before in zip(groups, held_back, *starts, strict=False):
                group.update(
                    {
                        key: value
                        for key, value in held.items()
                        if key in start and key in before and start[key] == before[key]
                    }
                )
        self._held_back = {}

    def _now(self, left_out: Collection[str] = ()) -> dict[str, _Groups]:
        left_out = {*left_out, _OF_HOOKS}
        return {
            name: [
                {k: v for k, v in group.items() if type(v) in _NUMBERS and k not in left_out}
                for group in optimizer.param_groups
            ]
            for name, optimizer in self._optimizers.items()
        }

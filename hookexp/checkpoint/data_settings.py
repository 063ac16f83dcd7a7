"""What hooks set on data sets while a run goes on: how hard samples are, what is drawn more often.

A checkpoint holds what is not what it was when training began. What reading samples changes by
itself is none of it: that is done again.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sized
from multiprocessing.sharedctypes import Synchronized
from typing import Any

from hookexp import dist
from hookexp.checkpoint.attributes import set_attribute
from hookexp.checkpoint.plain_form import can_be_held, to_plain
from hookexp.data.loader import Loader
from hookexp.data.settings import Settings, joined, owners_of

logger = logging.getLogger("hookexp")

_LARGE = 2**24
"""Bytes of what is no setting any more, but data; of a list, eight for each item."""


class DataSettings:
    """Of the map-style data sets of loaders, by the path of each."""

    def __init__(self, loaders: Mapping[str, Loader]) -> None:
        self._loaders = loaders
        self._began: dict[str, Settings] = {}
        self._left_out: set[str] = set()
        self._told: set[str] = set()

    def leave_out(self, names: Iterable[str]) -> None:
        """Of settings, as paths in their data set: somebody sets them by the run's position."""
        self._left_out.update(names)

    def begin(self) -> None:
        """Note what everything is; called when training begins and nothing was put back yet."""
        self._began = {path: Settings(loader.dataset) for path, loader in self._loaders.items()}

    def state_dict(self) -> dict[str, dict[str, dict[str, Any]]]:
        """By data set, object and attribute, each with whether it is what was there at first."""
        return {path: found for path in self._began if (found := self._changed(path))}

    def tell_of_workers(self) -> None:
        """Warn where workers, in the midst of a pass, have a data set as it was before."""
        for path, loader in self._loaders.items():
            if loader.settings_of_workers is None:
                continue
            now = Settings(loader.dataset)
            for key in now.changed_since(loader.settings_of_workers, at_a_glance=True):
                name = joined(*key)
                if not isinstance(now.small.get(key), Synchronized) and name not in self._left_out:
                    self._tell(
                        joined(path, name),
                        "was changed in mid-epoch, which workers of its loader see when the next "
                        "one begins, and those of a resumed run at once, so that it is not exact: "
                        "change it in before_train_epoch or after_train_epoch",
                    )

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Set what still is there; of the rest one line says that it begins anew."""
        for path, of_data_set in state.items():
            loader = self._loaders.get(path)
            owners = {} if loader is None else dict(owners_of(loader.dataset))
            for where, values in of_data_set.items():
                for name, (value, is_the_same) in values.items():
                    try:
                        set_attribute(owners[where], name, value, is_the_same)
                    except (AttributeError, TypeError, LookupError, ValueError):
                        name = joined(path, where, name)
                        logger.warning(
                            "%s is not what it was in the checkpoint, and begins anew", name
                        )

    def _changed(self, path: str) -> dict[str, dict[str, Any]]:
        loader, began = self._loaders[path], self._began[path]
        now = Settings(loader.dataset)
        held: dict[str, dict[str, Any]] = {}
        for key in now.changed_since(began):
            where, name = key
            if key in loader.reads.keys or joined(where, name) in self._left_out:
                continue
            value = now.small[key] if key in now.small else now.others[key]
            if key in now.others and (_is_large(value) or not can_be_held(value)):
                self._tell(
                    joined(path, where, name),
                    f"({type(value).__name__}) is set in training and is in no checkpoint: a "
                    "resumed run is exact only if that is done again; set it in before_train_epoch "
                    "by what runner.epoch is, or keep numbers, lists, arrays and tensors there",
                )
            else:
                is_the_same = {**began.small, **began.others}.get(key) is value
                held.setdefault(where, {})[name] = [to_plain(value), is_the_same]
        return held

    def _tell(self, name: str, what: str) -> None:
        if name not in self._told and dist.rank() == 0:
            logger.warning("%s %s", name, what)
        self._told.add(name)


def _is_large(value: Any) -> bool:
    num_bytes = getattr(value, "nbytes", None)
    if num_bytes is None:
        num_bytes = 8 * len(value) if isinstance(value, Sized) else 0
    return bool(num_bytes > _LARGE)

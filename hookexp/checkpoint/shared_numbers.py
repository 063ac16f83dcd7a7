"""Numbers of classes and modules of the user's own that change in training, told once.

All objects of a class have them, other runs in the process too, so a checkpoint holds none.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hookexp.runner import Runner

logger = logging.getLogger("hookexp")

_INSTALLED = ("site-packages", "dist-packages")
_OF_OTHERS = sys.stdlib_module_names | {"builtins", "torch", "hookexp"}


class SharedNumbers:
    """Made when training begins."""

    def __init__(self, runner: Runner) -> None:
        hooks = [entry.hook for entry in runner.hooks.entries]
        kinds = {type(one) for one in (runner.task, *runner.model.modules(), *hooks)}
        self._places = dict(_places(kinds))
        self._began = self._numbers()

    def tell(self) -> None:
        """Warn about those that are not what they were; called at a save."""
        now = self._numbers()
        for name in [name for name, value in self._began.items() if now.get(name) != value]:
            del self._began[name]
            logger.warning(
                "%s changes in training, and no checkpoint holds what belongs to a class or a "
                "module: a resumed run is exact only if nothing depends on it; keep it in the "
                "object, such as self.%s",
                *(name, name.rpartition(".")[2].lower()),
            )

    def _numbers(self) -> dict[str, float]:
        return {
            f"{place}.{name}": value
            for place, namespace in self._places.items()
            for name, value in namespace.items()
            if type(value) in (int, float)
        }


def _places(kinds: set[type]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The namespaces of classes, of those they derive from and of their modules, by name."""
    for kind in sorted({base for one in kinds for base in one.__mro__}, key=repr):
        module = sys.modules.get(kind.__module__)
        file = getattr(module, "__file__", None) or ""
        is_of_others = kind.__module__.partition(".")[0] in _OF_OTHERS
        if module is not None and not is_of_others and not any(p in file for p in _INSTALLED):
            yield kind.__name__, vars(kind)
            yield module.__name__, vars(module)

"""`Replaced`: parameters that come in training, which a resumed run does not have when it loads.

A hook may put a new layer in the place of another, or give the optimizer one more group. A layer of
other names or shapes is told by the checkpointer, since it cannot be loaded.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from weakref import ref

from hookexp import dist
from hookexp.optim.states import config_path

if TYPE_CHECKING:
    from hookexp.runner import Runner

logger = logging.getLogger("hookexp")


class Replaced:
    """Made when training begins; tells once of the model and once of the optimizers."""

    def __init__(self, runner: Runner) -> None:
        self._model = dist.unwrap(runner.model)
        self._optimizers = runner.optim_wrapper.optimizers
        parameters = self._model.named_parameters()
        self._of_the_model = {name: (ref(p), p.shape) for name, p in parameters}
        """By name. References are weak: one that is gone takes no memory."""
        self._of_optimizers = {id(p): ref(p) for _, p in self._stepped()}

    def tell(self) -> None:
        """Called at a save."""
        for name, parameter in self._model.named_parameters():
            was, shape = self._of_the_model.get(name, (None, None))
            if was is not None and was() is not parameter and shape == parameter.shape:
                self._of_the_model = {}
                self._warn(
                    "model.%s has become another parameter in training: a resumed run has the one "
                    "of before, and that one learns; put layers in the place of others in "
                    "before_run, or new values into the parameters there are",
                    name,
                )
        for where, parameter in self._stepped() if self._of_optimizers else ():
            was = self._of_optimizers.get(id(parameter))
            if was is None or was() is not parameter:
                self._of_optimizers = {}
                self._warn(
                    "%s has come in training: a run is refused that is resumed without it; add "
                    "groups in before_run",
                    where,
                )
                break

    def _stepped(self) -> Iterator[tuple[str, Any]]:
        """What optimizers step, each with where it is."""
        for name, optimizer in self._optimizers.items():
            path = config_path(name)
            for number, group in enumerate(optimizer.param_groups):
                yield from ((f"{path}: group {number}", p) for p in group["params"])

    def _warn(self, message: str, what: str) -> None:
        if dist.rank() == 0:
            logger.warning(message, what)

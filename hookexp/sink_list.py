"""`SinkList`: the sinks of a run, addressed as one, of which none can stop the run."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hookexp.sink import LogPoint, Sink

if TYPE_CHECKING:
    from torch import Tensor

    from hookexp.runner import Runner


class SinkList(Sink):
    """Hands everything to each sink, in order, and keeps what goes wrong there away from the run.

    A sink that cannot be opened is left alone until `close`. One that raises later is warned
    about once and still called: a full disk may have room again. On ranks other than 0 nothing is
    opened, and nothing is passed on.

    Args:
        sinks: the sinks by their names in the config (`jsonl`), used in warnings.
    """

    def __init__(self, sinks: Mapping[str, Sink]) -> None:
        self.sinks = dict(sinks)
        self._to_close: dict[str, Sink] = {}
        self._active: dict[str, Sink] = {}
        self._num_failures: Counter[str] = Counter()
        self._logger = logging.getLogger("hookexp")

    @property
    def is_open(self) -> bool:
        """Whether any sink takes what it is given."""
        return bool(self._active)

    def open(self, runner: Runner) -> None:
        self._logger = runner.logger
        if runner.rank != 0:
            return
        self._to_close = self.sinks
        for name, sink in self.sinks.items():
            try:
                sink.open(runner)
            except Exception as error:
                self._warn(name, "could not be opened, the run goes on without it", error)
            else:
                self._active[name] = sink

    def log_config(self, config: Mapping[str, Any]) -> None:
        self._call_each(lambda _, sink: sink.log_config(config))

    def log_scalars(self, scalars: Mapping[str, float], step: int, point: LogPoint) -> None:
        self._call_each(lambda _, sink: sink.log_scalars(scalars, step, point))

    def log_image(self, name: str, image: Tensor, step: int) -> None:
        self._call_each(lambda _, sink: sink.log_image(name, image, step))

    def log_artifact(self, name: str, path: Path, step: int) -> None:
        self._call_each(lambda _, sink: sink.log_artifact(name, path, step))

    def flush(self) -> None:
        self._call_each(lambda _, sink: sink.flush())

    def state_dict(self) -> dict[str, Any]:
        states: dict[str, Any] = {}

        def ask(name: str, sink: Sink) -> None:
            states[name] = sink.state_dict()

        self._call_each(ask)
        return states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        def tell(name: str, sink: Sink) -> None:
            if name in state:
                sink.load_state_dict(state[name])

        self._call_each(tell)

    def start_over(self) -> None:
        self._call_each(lambda _, sink: sink.start_over())

    def close(self) -> None:
        self._active, self._to_close = self._to_close, {}
        self._call_each(lambda _, sink: sink.close())
        self._active = {}
        for name, count in self._num_failures.items():
            if count > 1:
                self._logger.warning(
                    "sink '%s' failed %d times: what it holds of this run has gaps", name, count
                )
        self._num_failures.clear()

    def _call_each(self, call: Callable[[str, Sink], None]) -> None:
        for name, sink in self._active.items():
            try:
                call(name, sink)
            except Exception as error:
                self._num_failures[name] += 1
                if self._num_failures[name] == 1:
                    self._warn(name, "failed, the run goes on (this is said once)", error)

    def _warn(self, name: str, what: str, error: Exception) -> None:
        self._logger.warning(
            "sink '%s' %s: %s: %s. To do without it: sinks=-%s",
            name,
            what,
            type(error).__name__,
            error,
            name,
        )
        self._logger.debug("the traceback of sink '%s'", name, exc_info=error)

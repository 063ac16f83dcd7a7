"""The message hub as MMEngine's `MessageHub` and `LogProcessor`, and as the log buffer of MMCV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from hookexp.checkpoint.plain import ensure_plain
from hookexp.compat.view import View
from hookexp.errors import ConfigError
from hookexp.message_hub import MessageHub, ScalarWindow


class HistoryView(View):
    """A window of values as a history buffer: arrays, and `window_size` instead of `window`."""

    published = ("mmengine.logging", "HistoryBuffer")
    _viewed: ScalarWindow

    @property
    def data(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Values and counts; each value counts once."""
        values = np.array([float(value) for value in self._viewed.values])
        return values, np.ones(len(values))

    @property
    def _log_history(self) -> np.ndarray[Any, Any]:
        return self.data[0]

    def mean(self, window_size: int | None = None) -> float:
        return self._viewed.mean(window_size)

    def min(self, window_size: int | None = None) -> float:
        return self._viewed.min(window_size)

    def max(self, window_size: int | None = None) -> float:
        return self._viewed.max(window_size)

    def statistics(self, method_name: str, *args: Any, **kwargs: Any) -> Any:
        """A statistic by its name."""
        return getattr(self, method_name)(*args, **kwargs)

    def update(self, log_val: float, count: int = 1) -> None:
        self._viewed.values.append(log_val)


class HubView(View):
    """The message hub, with infos that are kept in checkpoints unless told otherwise."""

    published = ("mmengine.logging", "MessageHub")
    _viewed: MessageHub

    @property
    def runtime_info(self) -> dict[str, Any]:
        return self._viewed.infos

    @property
    def log_scalars(self) -> dict[str, HistoryView]:
        return {key: HistoryView(window) for key, window in self._viewed.scalars.items()}

    def get_scalar(self, key: str) -> HistoryView:
        return HistoryView(self._viewed.get_scalar(key))

    def update_scalar(self, key: str, value: Any, count: int = 1, resumed: bool = True) -> None:
        """Add a number: Python's, NumPy's, or a tensor of one element."""
        is_array = isinstance(value, (np.ndarray, np.generic))
        self._viewed.update_scalar(key, value.item() if is_array else value)

    def update_scalars(self, log_dict: Mapping[str, Any], resumed: bool = True) -> None:
        """Add numbers by name, each plain or as `{"value": number, "count": n}`."""
        for key, value in log_dict.items():
            self.update_scalar(key, value["value"] if isinstance(value, Mapping) else value)

    def update_info(self, key: str, value: Any, resumed: bool = True) -> None:
        """Set an info; one that a checkpoint could not hold is not kept in it."""
        value = value.item() if isinstance(value, np.generic) else value
        try:
            ensure_plain(value, key)
        except ConfigError:
            resumed = False
        self._viewed.update_info(key, value, keep=resumed)

    def update_info_dict(self, info_dict: Mapping[str, Any], resumed: bool = True) -> None:
        for key, value in info_dict.items():
            self.update_info(key, value, resumed)

    def pop_info(self, key: str, default: Any = None) -> Any:
        return self._viewed.pop_info(key, default)


class LogProcessorView(View):
    """What a logger hook asks for: the scalars of a mode, and a line to print."""

    published = ("mmengine.runner", "LogProcessor")
    runner: Any
    window_size = 10
    """Values that a mean is taken over."""

    def get_log_after_iter(
        self, runner: Any, batch_idx: int, mode: str
    ) -> tuple[dict[str, float], str]:
        return self._log(mode, f"[{self.runner.epoch + 1}][{batch_idx + 1}]")

    def get_log_after_epoch(
        self, runner: Any, batch_idx: int, mode: str, with_non_scalar: bool = False
    ) -> tuple[dict[str, float], str]:
        return self._log(mode, f"[{self.runner.epoch}][{batch_idx}/{batch_idx}]")

    def _log(self, mode: str, position: str) -> tuple[dict[str, float], str]:
        scalars = vars(self)["_viewed"].read(f"{mode}/", self.window_size)
        values = "  ".join(f"{name}: {value:.4g}" for name, value in scalars.items())
        return scalars, f"({mode}) {position}  {values}"


class LogBufferView(View):
    """The message hub as the log buffer of MMCV."""

    _viewed: MessageHub
    runner: Any

    @property
    def output(self) -> dict[str, float]:
        """The scalars of the current mode, averaged."""
        return self._viewed.read(f"{self.runner.stage}/", self._viewed.window)

    def update(self, log_vars: Mapping[str, Any], count: int = 1) -> None:
        HubView(self._viewed).update_scalars(
            {f"{self.runner.stage}/{name}": value for name, value in log_vars.items()}
        )

    def average(self, n: int = 0) -> None:
        """Averages are taken where they are read."""

    def clear(self) -> None:
        self._viewed.clear(f"{self.runner.stage}/")

    clear_output = clear

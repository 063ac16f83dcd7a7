"""Views of the parts of a run that hooks of MMEngine and MMCV reach through the runner."""

from __future__ import annotations

import pprint
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hookexp.checkpoint.plain import ensure_plain
from hookexp.compat.view import View
from hookexp.errors import ConfigError
from hookexp.message_hub import MessageHub, ScalarWindow
from hookexp.optim.param_schedulers import ParamSchedulers
from hookexp.optim.plateau import ReduceOnPlateauParamScheduler
from hookexp.sink import LogPoint
from hookexp.state import RunState


class FolderName(str):
    """A folder as the text that published hooks expect, which also does what a Path does."""

    __slots__ = ()

    def __truediv__(self, name: str) -> Path:
        return Path(self) / name

    def __getattr__(self, name: str) -> Any:
        return getattr(Path(self), name)


class ConfigView(dict[str, Any]):
    """The composed config, whose keys are attributes as well."""

    def __getattr__(self, name: str) -> Any:
        try:
            return self[name]
        except KeyError:
            raise AttributeError(f"the config has no key {name!r}") from None

    def __getitem__(self, key: str) -> Any:
        value = super().__getitem__(key)
        return ConfigView(value) if isinstance(value, dict) else value

    def get(self, key: str, default: Any = None) -> Any:
        return ConfigView.__getitem__(self, key) if key in self else default

    @property
    def pretty_text(self) -> str:
        return pprint.pformat(dict(self), sort_dicts=False)


class HistoryView(View):
    """A window of values as a history buffer: arrays, and `window_size` instead of `window`."""

    published = ("mmengine.logging", "HistoryBuffer")
    _viewed: ScalarWindow

    @property
    def data(self) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Values and counts; each value counts once."""
        values = np.array([float(value) for value in self._viewed.values])
        return values, np.ones(len(values))

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


class LoopView(View):
    """A loop, and the counters that published hooks read from it; there may be no loop."""

    _viewed: Any
    runner: Any

    @property
    def published(self) -> tuple[str, str]:  # type: ignore[override]
        mode = vars(self)["mode"]
        trains = "EpochBasedTrainLoop" if self.runner.by_epoch else "IterBasedTrainLoop"
        return "mmengine.runner", {"train": trains, "val": "ValLoop", "test": "TestLoop"}[mode]

    def __getattr__(self, name: str) -> Any:
        if self._viewed is None:
            raise AttributeError(f"this run has no {vars(self)['mode']} loop, so no {name!r} of it")
        return getattr(self._viewed, name)

    @property
    def dataloader(self) -> Any:
        return None if self._viewed is None else self._viewed.dataloader

    @property
    def stop_training(self) -> bool:
        return bool(self.runner.state.stop_reason)

    @stop_training.setter
    def stop_training(self, value: bool) -> None:
        if value:
            self.runner.state.stop("a hook set train_loop.stop_training")

    @property
    def epoch(self) -> int:
        return int(self.runner.epoch)

    @property
    def iter(self) -> int:
        return int(self.runner.iter)

    @property
    def max_epochs(self) -> int:
        return int(self.runner.max_epochs)

    @property
    def max_iters(self) -> int | None:
        max_iters: int | None = self.runner.max_iters
        return max_iters

    @property
    def val_interval(self) -> int:
        return int(self.runner.settings.val_interval or 1)

    @property
    def val_begin(self) -> int:
        return int(self.runner.settings.val_begin)

    _epoch, _iter, _max_epochs, _max_iters = epoch, iter, max_epochs, max_iters


class OptimWrapperView(View):
    """The optimizers; accumulation is what the optimizer hook has set."""

    published = ("mmengine.optim", "OptimWrapper")

    @property
    def _accumulative_counts(self) -> int:
        return int(vars(self)["_viewed"].windows.longest)


class SchedulerView(View):
    """One scheduler that can be stepped from outside.

    Schedules here are functions of the run's position, so a step does not advance anything: it
    writes the values for where the run is. Those that a metric drives are fed together, once.

    Args of the constructor:
        schedulers: all of the run.
        state: of the run.
        feeds: whether a metric given to this one is handed on.
    """

    published = ("mmengine.optim", "_ParamScheduler")

    @property
    def by_epoch(self) -> bool:
        return self.need_val_args or bool(vars(self)["_viewed"].counts_epochs)

    @property
    def need_val_args(self) -> bool:
        return bool(vars(self)["feeds"])

    def step(self, metrics: Mapping[str, float] | None = None) -> None:
        schedulers: ParamSchedulers = vars(self)["schedulers"]
        state: RunState = vars(self)["state"]
        if metrics is not None:
            schedulers.update_with_metrics(metrics)
        else:
            # Those by epoch are stepped in after_train_epoch, before the epoch counts as finished.
            epoch = state.epoch + 1 if self.by_epoch else state.epoch
            schedulers.update(epoch, state.optim_steps)


def scheduler_views(schedulers: ParamSchedulers, state: RunState) -> list[SchedulerView]:
    """The schedulers of a run as a list of objects with `step`."""
    views = []
    has_feeder = False
    for scheduler in schedulers:
        feeds = isinstance(scheduler, ReduceOnPlateauParamScheduler) and not has_feeder
        has_feeder = has_feeder or feeds
        views.append(SchedulerView(scheduler, schedulers=schedulers, state=state, feeds=feeds))
    return views


class VisualizerView(View):
    """The sinks, as something that numbers and pictures are added to one by one."""

    published = ("mmengine.visualization", "Visualizer")
    runner: Any

    def add_scalar(self, name: str, value: Any, step: int = 0, **_: Any) -> None:
        self.add_scalars({name: value}, step)

    def add_scalars(self, scalar_dict: Mapping[str, Any], step: int = 0, **_: Any) -> None:
        """One row; what is not a number is left out."""
        runner = self.runner
        row = {k: float(v) for k, v in scalar_dict.items() if _is_number(v)}
        point = LogPoint(
            mode=runner.stage,
            epoch=runner.epoch + 1,
            iter=runner.iter,
            batch=runner.inner_iter + 1,
            num_batches=None,
            is_result=True,
        )
        self._opened().log_scalars(row, step, point)

    def add_image(self, name: str, image: Any, step: int = 0, **_: Any) -> None:
        """A picture: uint8 of shape (height, width, 3), NumPy array or tensor."""
        pixels = torch.as_tensor(image).permute(2, 0, 1).contiguous()
        self._opened().log_image(name, pixels, step)

    def add_config(self, config: Mapping[str, Any], **_: Any) -> None:
        self._opened().log_config(config)

    def add_graph(self, *_: Any, **__: Any) -> None:
        """Sinks take no graphs; a hook that adds one need not fail for that."""

    def _opened(self) -> Any:
        sinks = vars(self)["_viewed"]
        if not sinks.is_open:
            sinks.open(vars(self.runner)["_viewed"])
        return sinks


def _is_number(value: Any) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return bool(value.size == 1) if isinstance(value, np.ndarray) else value.numel() == 1
    return isinstance(value, (int, float, np.generic)) and not isinstance(value, bool)


class LogProcessorView(View):
    """What a logger hook asks for: the scalars of a mode, and a line to print."""

    published = ("mmengine.runner", "LogProcessor")
    runner: Any

    def get_log_after_iter(
        self, runner: Any, batch_idx: int, mode: str
    ) -> tuple[dict[str, float], str]:
        return self._log(mode, f"[{self.runner.epoch + 1}][{batch_idx + 1}]")

    def get_log_after_epoch(
        self, runner: Any, batch_idx: int, mode: str, with_non_scalar: bool = False
    ) -> tuple[dict[str, float], str]:
        return self._log(mode, f"[{self.runner.epoch}][{batch_idx}/{batch_idx}]")

    def _log(self, mode: str, position: str) -> tuple[dict[str, float], str]:
        scalars = vars(self)["_viewed"].read(f"{mode}/", 10)
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

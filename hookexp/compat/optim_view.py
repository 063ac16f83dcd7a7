"""Optimizers and schedulers as MMEngine's `OptimWrapper` and `_ParamScheduler`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor

from hookexp.compat.view import View
from hookexp.optim.param_schedulers import ParamSchedulers
from hookexp.optim.plateau import ReduceOnPlateauParamScheduler
from hookexp.state import RunState


class OptimWrapperView(View):
    """The optimizers; one of several by its name, as `optim_wrapper["generator"]`.

    Args of the constructor:
        runner: our own, which steps between the mount points of a step.
        name: of the one optimizer that this is; None for all.
    """

    runner: Any
    name: str | None

    @property
    def published(self) -> tuple[str, str]:  # type: ignore[override]
        is_dict = self.name is None and len(vars(self)["_viewed"].optimizers) > 1
        return "mmengine.optim", "OptimWrapperDict" if is_dict else "OptimWrapper"

    @property
    def _accumulative_counts(self) -> int:
        return int(vars(self)["_viewed"].windows.longest)

    @property
    def optimizer(self) -> Any:
        viewed = vars(self)["_viewed"]
        return viewed.optimizer if self.name is None else viewed.optimizers[self.name]

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        groups: list[dict[str, Any]] = vars(self)["_viewed"].param_groups
        return groups if self.name is None else self.optimizer.param_groups

    def get_lr(self) -> dict[str, list[float]]:
        """`{"lr": [...]}`; for several optimizers `{"name.lr": [...], ...}`."""
        return self._by_name(vars(self)["_viewed"].get_lr)

    def get_momentum(self) -> dict[str, list[float]]:
        """`{"momentum": [...]}`; for several optimizers `{"name.momentum": [...], ...}`."""
        return self._by_name(vars(self)["_viewed"].get_momentum)

    def keys(self) -> Iterator[str]:
        return iter(vars(self)["_viewed"].optimizers)

    def values(self) -> Iterator[OptimWrapperView]:
        return (self[name] for name in self.keys())

    def items(self) -> Iterator[tuple[str, OptimWrapperView]]:
        return ((name, self[name]) for name in self.keys())

    def __contains__(self, name: str) -> bool:
        return name in vars(self)["_viewed"].optimizers

    def __len__(self) -> int:
        return len(vars(self)["_viewed"].optimizers)

    def __getitem__(self, name: str) -> OptimWrapperView:
        if name not in self:
            raise KeyError(f"no optimizer {name!r}; there are: {', '.join(self.keys())}")
        return OptimWrapperView(vars(self)["_viewed"], runner=self.runner, name=name)

    @contextmanager
    def optim_context(self, model: Any) -> Iterator[None]:
        """The precision of the run, for a forward pass of a hook's own."""
        with self.runner._autocast:
            yield

    def update_params(self, loss: Tensor, *_: Any, **__: Any) -> None:
        """Backward, then a whole step between its mount points; it opens no window."""
        self.backward(loss)
        self.step()

    def backward(self, loss: Tensor, **_: Any) -> None:
        vars(self)["_viewed"].backward(loss)

    def step(self, **_: Any) -> None:
        """Unscale, clip, step and forget the gradients."""
        self.runner.optimizer_step(self.name)

    def zero_grad(self, **_: Any) -> None:
        self.optimizer.zero_grad()

    def scale_loss(self, loss: Tensor) -> Tensor:
        """Windows divide it when a step is due, so here it stays as it is."""
        return loss

    def should_update(self) -> bool:
        return True

    def initialize_count_status(self, *_: Any) -> None:
        """Windows count the run's iterations; there is nothing to begin."""

    def _by_name(self, read: Callable[[], dict[str, list[float]]]) -> dict[str, list[float]]:
        optimizers = vars(self)["_viewed"].optimizers
        ((key, values),) = read().items()
        named: dict[str, list[float]] = {}
        first = 0
        for name, optimizer in optimizers.items():
            last = first + len(optimizer.param_groups)
            named[f"{name}.{key}"] = values[first:last]
            first = last
        if self.name is not None:
            return {key: named[f"{self.name}.{key}"]}
        return named if len(optimizers) > 1 else {key: values}


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

"""`ParamSchedulers`: the schedulers of a run, written into the optimizers' parameter groups.

Every scheduler class is importable from here, which is where the config's `_target_` looks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch.optim import Optimizer

from hookexp.errors import ConfigError
from hookexp.monitor import require_metric
from hookexp.optim.closed_forms import (
    ConstantParamScheduler,
    CosineAnnealingParamScheduler,
    CosineRestartParamScheduler,
    ExponentialParamScheduler,
    LinearParamScheduler,
    MultiStepParamScheduler,
    OneCycleParamScheduler,
    PolyParamScheduler,
    StepParamScheduler,
)
from hookexp.optim.param_scheduler import ParamScheduler
from hookexp.optim.plateau import ReduceOnPlateauParamScheduler
from hookexp.optim.scheduled_entry import ScheduledEntry, require_entry

__all__ = [
    "ConstantParamScheduler",
    "CosineAnnealingParamScheduler",
    "CosineRestartParamScheduler",
    "ExponentialParamScheduler",
    "LinearParamScheduler",
    "MultiStepParamScheduler",
    "OneCycleParamScheduler",
    "ParamScheduler",
    "ParamSchedulers",
    "PolyParamScheduler",
    "ReduceOnPlateauParamScheduler",
    "StepParamScheduler",
]


class ParamSchedulers:
    """The schedulers of a run by their config names.

    Those on the same value compose in the order of the config: the second maps what the first
    made of the value in the config, and so on. So a warm-up and a cosine that begins where the
    warm-up ends are two entries.

    Iterating gives the schedulers, `schedulers["cosine"]` gives one of them.
    """

    def __init__(self, schedulers: Mapping[str, ParamScheduler] | None = None) -> None:
        self.schedulers = dict(schedulers or {})
        for name, scheduler in self.schedulers.items():
            if not isinstance(scheduler, ParamScheduler):
                raise ConfigError(
                    f"param_scheduler.{name}: {scheduler!r} is not a ParamScheduler; it needs a "
                    "_target_ such as hookexp.optim.param_schedulers.StepParamScheduler (to take "
                    f"one out: ~param_scheduler.{name})"
                )
        self._plateaus = {
            name: scheduler
            for name, scheduler in self.schedulers.items()
            if isinstance(scheduler, ReduceOnPlateauParamScheduler)
        }
        self._entries: list[ScheduledEntry] = []
        self._position: tuple[int, int] | None = None

    def __iter__(self) -> Iterator[ParamScheduler]:
        return iter(self.schedulers.values())

    def __len__(self) -> int:
        return len(self.schedulers)

    def __getitem__(self, name: str) -> ParamScheduler:
        return self.schedulers[name]

    def bind(
        self, optimizers: Mapping[str, Optimizer], max_epochs: int | None, max_steps: int | None
    ) -> None:
        """Learn what is scheduled and how long the run is. The groups hold the config's values now.

        The values are kept, and also stored in each group as `initial_<param_name>`.

        Args:
            optimizers: by name; every group of each of them must have the scheduled entries.
            max_epochs: None for a run by iterations.
            max_steps: optimizer steps of the run; None if the data cannot tell.

        Raises:
            ConfigError: for an entry the groups do not have, or positions the run does not have.
        """
        by_param: dict[str, list[ParamScheduler]] = {}
        for name, scheduler in self.schedulers.items():
            scheduler.bind(name, max_epochs, max_steps)
            for optimizer in optimizers.values():
                for group in optimizer.param_groups:
                    require_entry(group, scheduler.param_name, f"param_scheduler.{name}")
            by_param.setdefault(scheduler.param_name, []).append(scheduler)
        self._entries = [
            ScheduledEntry(param_name, schedulers, list(optimizers.values()))
            for param_name, schedulers in by_param.items()
        ]
        self._position = None

    def update(self, epoch: int, optim_steps: int) -> None:
        """Write the values for a position: finished epochs and optimizer steps."""
        self._position = (epoch, optim_steps)
        for entry in self._entries:
            entry.update(epoch, optim_steps)

    def values(self) -> dict[str, Any]:
        """What is scheduled, by entry of the groups, as `put_back` takes it; once it was written.

        Where a hook has changed a value, that is how training goes on until the next one is due.
        """
        is_written = self._position is not None
        return {entry.param_name: entry.values() for entry in self._entries if is_written}

    def put_back(self, values: Mapping[str, Any]) -> None:
        """Put back what hooks had made of scheduled values.

        Those of a schedule that says something else now than it did are left as it says.
        """
        for entry in self._entries:
            if self._position is not None and entry.param_name in values:
                entry.put_back(values[entry.param_name])

    def update_with_metrics(self, metrics: Mapping[str, float]) -> None:
        """Show an evaluation to the schedulers that follow a metric.

        Raises:
            ConfigError: if a monitored metric is missing; the message lists those there are.
        """
        if self._position is None or not self._plateaus:
            return
        epoch, optim_steps = self._position
        for plateau in self._plateaus.values():
            plateau.observe(metrics, epoch if plateau.counts_epochs else optim_steps)
        self._write_again()

    def check_metrics(self, metric_names: Sequence[str]) -> None:
        """Refuse a monitored metric that the task does not measure.

        Raises:
            ConfigError: with the metrics there are.
        """
        for name, plateau in self._plateaus.items():
            try:
                require_metric("monitor", plateau.monitor, metric_names)
            except ValueError as error:
                raise ConfigError(f"param_scheduler.{name}.{error}") from None

    def state_dict(self) -> dict[str, Any]:
        """What does not follow from config and position, by scheduler."""
        states = {name: scheduler.state_dict() for name, scheduler in self.schedulers.items()}
        return {name: state for name, state in states.items() if state}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned; schedulers that it does not have start fresh."""
        for name, saved in state.items():
            self.schedulers[name].load_state_dict(saved)
        self._write_again()

    def _write_again(self) -> None:
        for entry in self._entries:
            entry.forget_position()
        if self._position is not None:
            self.update(*self._position)

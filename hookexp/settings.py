"""`TrainerSettings`: the values of the config group `trainer`, checked when they are stored."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from hookexp.errors import ConfigError
from hookexp.numeric import is_whole
from hookexp.precision import PRECISIONS

DEFAULT_MAX_EPOCHS = 10
_MODES = ("train", "val", "test")
_GRAPH_MODES = ("reduce-overhead", "max-autotune")
_COMPILE_MODES = ("default", *_GRAPH_MODES, "max-autotune-no-cudagraphs")


@dataclass(frozen=True)
class TrainerSettings:
    """How long, how often, where and in which precision a run trains.

    Raises:
        ConfigError: for a value that cannot be; the message names its config path.
    """

    max_epochs: int | None = None
    max_iters: int | None = None
    val_interval: int | None = None
    val_begin: int = 1
    dynamic_intervals: list[list[int]] = field(default_factory=list)
    device: str = "auto"
    precision: str = "fp32"
    compile: bool | str | dict[str, Any] = False
    channels_last: bool = False
    tf32: bool | None = None
    activation_checkpointing: list[str] = field(default_factory=list)
    ddp: dict[str, Any] | None = None
    deterministic: bool = False
    objective: str = "auto"
    verify_iters: int = 15
    limit_train_batches: int | None = None
    limit_val_batches: int | None = None
    limit_test_batches: int | None = None
    overfit_batches: int | None = None
    fast_dev_run: bool | int = False
    hook_budget: float | None = 0.05

    def __post_init__(self) -> None:
        if self.max_epochs is not None and self.max_iters is not None:
            raise ConfigError(
                f"trainer.max_epochs={self.max_epochs} and trainer.max_iters={self.max_iters} are "
                "both given; a run is as long as one of them says: set the other to null"
            )
        _require_whole("max_epochs", self.max_epochs, 1)
        _require_whole("max_iters", self.max_iters, 1)
        _require_whole("val_interval", self.val_interval, 1)
        _require_whole("val_begin", self.val_begin, 0)
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"trainer.precision={self.precision}: use one of {', '.join(PRECISIONS)}"
            )
        for name in ("channels_last", "deterministic"):
            if not isinstance(getattr(self, name), bool):
                raise ConfigError(f"trainer.{name}={getattr(self, name)}: use true or false")
        if self.tf32 is not None and not isinstance(self.tf32, bool):
            raise ConfigError(f"trainer.tf32={self.tf32}: use true, false or null (torch decides)")
        if not isinstance(self.compile, (bool, dict)) and self.compile not in _COMPILE_MODES:
            raise ConfigError(
                f"trainer.compile={self.compile}: use true, false, a mode "
                f"({', '.join(_COMPILE_MODES)}), or arguments of torch.compile such as "
                "{fullgraph: true}"
            )
        names = self.activation_checkpointing
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ConfigError(
                f"trainer.activation_checkpointing={names}: use a list of the names of modules, "
                "such as [blocks.*]"
            )
        if self.ddp is not None and not isinstance(self.ddp, dict):
            raise ConfigError(
                f"trainer.ddp={self.ddp}: use arguments of torch's DistributedDataParallel such as "
                "{find_unused_parameters: true}"
            )
        budget = self.hook_budget
        if budget is not None and (isinstance(budget, (bool, str)) or not 0 < budget <= 1):
            raise ConfigError(
                f"trainer.hook_budget={budget}: use a share of the time between 0 and 1, such as "
                "0.05, or null for no warnings"
            )
        self._check_dynamic_intervals()
        for name in (*(f"limit_{mode}_batches" for mode in _MODES), "overfit_batches"):
            _require_whole(name, getattr(self, name), 1)
        if not isinstance(self.fast_dev_run, int) or self.fast_dev_run < 0:
            raise ConfigError(
                f"trainer.fast_dev_run={self.fast_dev_run}: use true, false, or how many batches"
            )

    def spelled_out(self) -> TrainerSettings:
        """The same with `overfit_batches` and `fast_dev_run` as the limits that they stand for.

        Raises:
            ConfigError: for an `overfit_batches` beside another limit.
        """
        changes: dict[str, Any] = {}
        if self.overfit_batches is not None:
            for mode in ("train", "val"):
                if self.limit_of(mode) not in (None, self.overfit_batches):
                    raise ConfigError(
                        f"trainer.overfit_batches={self.overfit_batches} and "
                        f"trainer.limit_{mode}_batches={self.limit_of(mode)} are both given; a run "
                        "trains and validates on as many batches as the first says: set the other "
                        "to null"
                    )
                changes[f"limit_{mode}_batches"] = self.overfit_batches
        if self.fast_dev_run:
            for mode in _MODES:
                changes[f"limit_{mode}_batches"] = int(self.fast_dev_run)
            changes.update(
                {"max_epochs": 1} if self.by_epoch else {"max_iters": int(self.fast_dev_run)}
            )
        return replace(self, **changes)

    def limit_of(self, mode: str) -> int | None:
        """The most batches of an epoch, or of an evaluation; None: all."""
        limit: int | None = getattr(self, f"limit_{mode}_batches")
        return limit

    def _check_dynamic_intervals(self) -> None:
        for pair in self.dynamic_intervals:
            whole = isinstance(pair, list) and len(pair) == 2 and all(map(is_whole, pair))
            if not whole or pair[0] < 0 or pair[1] < 1:
                raise ConfigError(
                    f"trainer.dynamic_intervals: {pair} is not a pair [from, interval] of whole "
                    "numbers, such as [[15, 2], [18, 1]]"
                )
        starts = [pair[0] for pair in self.dynamic_intervals]
        if starts != sorted(set(starts)):
            raise ConfigError(
                f"trainer.dynamic_intervals={self.dynamic_intervals}: milestones must increase"
            )

    @property
    def by_epoch(self) -> bool:
        """Whether the budget counts epochs; else it counts iterations."""
        return self.max_iters is None

    @property
    def budget(self) -> int:
        """Epochs or iterations until training is done."""
        return self.max_iters or self.max_epochs or DEFAULT_MAX_EPOCHS

    @property
    def compiles_to_graphs(self) -> bool:
        """Whether torch.compile makes CUDA graphs on a GPU, which write to the same memory anew."""
        given: dict[str, Any] = {"mode": self.compile}
        if isinstance(self.compile, dict):
            given = self.compile
        if given.get("mode") in _GRAPH_MODES or given.get("backend") == "cudagraphs":
            return True
        return bool((given.get("options") or {}).get("triton.cudagraphs"))

    def validates_after(self, finished: int, batches_per_epoch: int | None) -> bool:
        """Whether a validation is due after so many epochs (or iterations) of the run."""
        if finished >= self.budget:
            return True
        one_pass = 1 if self.by_epoch else batches_per_epoch or self.budget
        interval = self.val_interval or one_pass
        for milestone, later_interval in self.dynamic_intervals:
            if finished >= milestone:
                interval = later_interval
        return finished >= max(self.val_begin, 1) and finished % interval == 0


def _require_whole(name: str, value: Any, least: int) -> None:
    may_be_null = name in ("max_epochs", "max_iters", "val_interval") or name.endswith("_batches")
    if value is None and may_be_null:
        return
    if not is_whole(value, least):
        is_text = isinstance(value, str) and value.isdecimal()
        how = " (this is text; of a variable: ${oc.decode:${oc.env:NAME}})" if is_text else ""
        raise ConfigError(f"trainer.{name}={value}: use a whole number, {least} or more{how}")

"""`ReduceOnPlateauParamScheduler`: the one schedule that follows a metric, not the position."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hookexp.errors import ConfigError
from hookexp.monitor import RULES, infer_rule, is_better
from hookexp.optim.param_scheduler import ParamScheduler


@dataclass(kw_only=True, eq=False)
class ReduceOnPlateauParamScheduler(ParamScheduler):
    """`v * factor ** reductions`, but not below `min_value` (torch's ReduceLROnPlateau).

    A reduction comes when more than `patience` evaluations in a row have not beaten the best one.
    Evaluations before `begin` and from `end` on do not count. NaN beats nothing.
    """

    monitor: str
    """A metric of the validation."""
    rule: str | None = None
    """`greater` or `less` is better; None asks the metric's name."""
    factor: float = 0.1
    patience: int = 10
    """Evaluations without a new best that are still forgiven."""
    threshold: float = 1e-4
    """By how much the best has to be beaten."""
    threshold_rule: str = "rel"
    """`rel`: the threshold is a share of the best value; `abs`: it is in the metric's unit."""
    cooldown: int = 0
    """Evaluations after a reduction in which bad ones are not counted."""
    min_value: float = 0.0

    best: float | None = field(init=False, default=None)
    num_bad_evals: int = field(init=False, default=0)
    cooldown_left: int = field(init=False, default=0)
    num_reductions: int = field(init=False, default=0)

    def check(self) -> None:
        if not isinstance(self.monitor, str) or not self.monitor:
            raise self.error("monitor", "use the name of a metric of the validation")
        if self.rule is not None:
            self.require_one_of("rule", RULES)
        self.decided_rule = self.rule or infer_rule(self.monitor, parameter="monitor")
        self.require_number("factor", 0)
        if self.factor >= 1:
            raise self.error("factor", "use a number from 0 to below 1")
        self.require_whole("patience", 0)
        self.require_number("threshold", 0)
        self.require_one_of("threshold_rule", ("rel", "abs"))
        self.require_whole("cooldown", 0)
        self.require_number("min_value")

    def apply(self, values: list[float], position: int) -> list[float]:
        if self.num_reductions == 0:
            return values
        factor = self.factor**self.num_reductions
        # a value that warm-up holds below min_value is left there, not raised
        return [min(value, max(value * factor, self.min_value)) for value in values]

    def observe(self, metrics: Mapping[str, float], position: int) -> None:
        """Take in an evaluation at `position`.

        Raises:
            ConfigError: if it lacks the metric; the message lists those it has.
        """
        if not 0 <= position - self.begin < self.length:
            return
        if self.monitor not in metrics:
            raise ConfigError(
                f"{type(self).__name__}: monitor={self.monitor}: the validation has no such "
                f"metric; it has: {', '.join(metrics) or 'none'}"
            )
        value = float(metrics[self.monitor])
        if is_better(value, self.best, self.decided_rule, self._margin()):
            self.best = value
            self.num_bad_evals = 0
        else:
            self.num_bad_evals += 1
        if self.cooldown_left > 0:
            self.cooldown_left -= 1
            self.num_bad_evals = 0
        if self.num_bad_evals > self.patience:
            self.num_reductions += 1
            self.cooldown_left = self.cooldown
            self.num_bad_evals = 0

    def _margin(self) -> float:
        """By how much the best has to be beaten, in the metric's unit."""
        if self.threshold_rule == "abs":
            return self.threshold
        # a share of the size, so that it also is a margin for negative values (torch's is none)
        finite = self.best is not None and math.isfinite(self.best)
        return self.threshold * abs(self.best) if finite and self.best is not None else 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "monitor": self.monitor,
            "rule": self.decided_rule,
            "best": self.best,
            "num_bad_evals": self.num_bad_evals,
            "cooldown_left": self.cooldown_left,
            "num_reductions": self.num_reductions,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned; the best of another metric or rule is forgotten."""
        self.num_reductions = state["num_reductions"]
        self.cooldown_left = state["cooldown_left"]
        if (state["monitor"], state["rule"]) == (self.monitor, self.decided_rule):
            self.best = state["best"]
            self.num_bad_evals = state["num_bad_evals"]

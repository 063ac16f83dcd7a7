"""`EarlyStoppingHook`: end training when a metric of the validation has stopped improving."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from hookexp.errors import ConfigError
from hookexp.hook import Hook, Priority
from hookexp.monitor import Rule, infer_rule, is_better, parse_rule, require_metric
from hookexp.numeric import is_number, require_whole

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from hookexp.runner import Runner


class EarlyStoppingHook(Hook):
    """Stops after `patience` validations in a row that did not beat the best one.

    The loop ends at its next safe point, so what is due then is still saved. Best score and count
    are in the checkpoint. A run that only validates or tests ignores it.

        python -m hookexp hooks=+early_stopping hooks.early_stopping.patience=3

    Args:
        monitor: a metric of the validation.
        rule: `greater` or `less` is better; None asks the metric's name.
        min_delta: by how much the best has to be beaten, in the metric's unit.
        strict: whether a validation without the metric is an error; else it warns once.
        check_finite: whether NaN or an infinity stops at once.
        patience: validations without a new best until the stop.
        stopping_threshold: stop at once when the metric is better than this.

    Raises:
        ValueError: for a value that cannot be, or a metric whose name does not tell the rule.
    """

    priority = Priority.LOWEST

    def __init__(
        self,
        monitor: str,
        rule: str | None = None,
        min_delta: float = 0.0,
        strict: bool = False,
        check_finite: bool = True,
        patience: int = 5,
        stopping_threshold: float | None = None,
    ) -> None:
        if not isinstance(monitor, str) or not monitor:
            raise ValueError(f"monitor={monitor!r}: use the name of a metric of the validation")
        require_whole("patience", patience)
        if not is_number(min_delta) or min_delta < 0:
            raise ValueError(f"min_delta={min_delta!r}: use a number, 0 or more")
        if stopping_threshold is not None and not is_number(stopping_threshold):
            raise ValueError(f"stopping_threshold={stopping_threshold!r}: use a number or null")
        self.monitor = monitor
        self.given_rule = None if rule is None else parse_rule(rule)
        self.min_delta = min_delta
        self.strict = strict
        self.check_finite = check_finite
        self.patience = patience
        self.stopping_threshold = stopping_threshold
        self.best_score: float | None = None
        self.wait_count = 0
        self._has_warned = False

    @property
    def rule(self) -> Rule:
        """As given, else as the metric's name tells."""
        return self.given_rule or infer_rule(self.monitor, parameter="monitor")

    def check_metrics(self, metric_names: Sequence[str]) -> None:
        require_metric("monitor", self.monitor, metric_names)
        assert self.rule

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        if runner.mode != "train":
            return
        metrics = metrics or {}
        if self.monitor not in metrics:
            self._report_missing(runner, metrics)
            return
        reason = self._judge(float(metrics[self.monitor]))
        if reason:
            runner.logger.info("early stopping: %s", reason)
            runner.state.stop(f"early stopping: {reason}")

    def _judge(self, score: float) -> str:
        """Take in a score; why to stop, or an empty string."""
        if self.check_finite and not math.isfinite(score):
            return f"{self.monitor} is {score}"
        if is_better(score, self.best_score, self.rule, self.min_delta):
            self.best_score = score
            self.wait_count = 0
        else:
            self.wait_count += 1
        threshold = self.stopping_threshold
        if threshold is not None and is_better(score, threshold, self.rule):
            return f"{self.monitor} {score:.6g} is {self.rule} than {threshold:g}"
        if self.wait_count >= self.patience:
            best = (
                "no number yet" if self.best_score is None else f"the best is {self.best_score:.6g}"
            )
            margin = f" by more than {self.min_delta:g}" if self.min_delta else ""
            return (
                f"{self.monitor} did not improve{margin} in {self.wait_count} validations ({best})"
            )
        return ""

    def _report_missing(self, runner: Runner, metrics: Mapping[str, float]) -> None:
        try:
            require_metric("hooks.early_stopping.monitor", self.monitor, metrics)
        except ValueError as error:
            if self.strict:
                raise ConfigError(str(error)) from None
            if not self._has_warned:
                self._has_warned = True
                runner.logger.warning("%s; training goes on", error)

    def state_dict(self) -> dict[str, Any]:
        return {
            "monitor": self.monitor,
            "rule": self.rule,
            "best_score": self.best_score,
            "wait_count": self.wait_count,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned; the best of another metric or rule is forgotten."""
        if (state["monitor"], state["rule"]) == (self.monitor, self.rule):
            self.best_score = state["best_score"]
            self.wait_count = state["wait_count"]

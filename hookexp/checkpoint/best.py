"""`BestScores`: which metrics best checkpoints are kept by, and the best of each so far."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from hookexp.monitor import (
    GREATER_KEYS,
    LESS_KEYS,
    infer_rule,
    is_better,
    parse_rule,
    require_metric,
)

_FIRST = "auto"


class BestScores:
    """The best score of each metric that is watched, with the file it is kept in.

    Args:
        metrics: their names, or `auto` alone for the first one of the task.
        rules: `greater` or `less`, one for all or one each; none infers them from the names.
        greater_keys, less_keys: the names, or parts of names, a rule is inferred from; none for
            those of `monitor`.

    Raises:
        ValueError: for rules that do not fit, in the words of `hooks.checkpoint`.
    """

    def __init__(
        self,
        metrics: Sequence[str],
        rules: Sequence[str] = (),
        greater_keys: Sequence[str] = (),
        less_keys: Sequence[str] = (),
    ) -> None:
        _refuse_unfit(metrics, rules)
        self.metrics = metrics
        self._rules = [parse_rule(rule) for rule in rules]
        self.greater_keys = tuple(greater_keys) or GREATER_KEYS
        self.less_keys = tuple(less_keys) or LESS_KEYS
        self._best: dict[str, dict[str, Any]] = {}

    def __len__(self) -> int:
        """How many metrics are watched."""
        return len(self.metrics)

    def rules(self, metric_names: Iterable[str], parameter: str = "save_best") -> dict[str, str]:
        """The metrics by which best checkpoints are kept, and of each `greater` or `less`.

        Raises:
            ValueError: for a metric that is not there, or whose name does not tell.
        """
        names = list(metric_names)
        rules: dict[str, str] = {}
        for index, wanted in enumerate(self.metrics):
            metric = self._resolve(wanted, names)
            require_metric(parameter, metric, names)
            if self._rules:
                rules[metric] = self._rules[index if len(self._rules) > 1 else 0]
            else:
                rules[metric] = infer_rule(metric, self.greater_keys, self.less_keys, parameter)
        return rules

    def beaten_by(self, metrics: Mapping[str, float]) -> Iterator[tuple[str, float]]:
        """The metrics that are better than ever, with their scores.

        Raises:
            ValueError: for a watched metric that is not among them, or whose name does not tell.
        """
        for metric, rule in self.rules(metrics, "hooks.checkpoint.save_best").items():
            best = self._best.get(metric)
            if is_better(metrics[metric], None if best is None else best["score"], rule):
                yield metric, metrics[metric]

    def note(self, metric: str, score: float, file: str) -> tuple[str, ...]:
        """Take a score for the best; returns the file that its predecessor was kept in, if any."""
        before = self._best.get(metric)
        self._best[metric] = {"score": score, "file": file}
        return () if before is None else (before["file"],)

    def files(self) -> dict[str, str | None]:
        """Where the best by each metric is; None where no score has come yet."""
        metrics = [self._resolve(metric, self._best) for metric in self.metrics]
        return {m: self._best[m]["file"] if m in self._best else None for m in metrics}

    def state_dict(self) -> dict[str, dict[str, Any]]:
        return {name: dict(best) for name, best in self._best.items()}

    def load_state_dict(self, state: Mapping[str, Mapping[str, Any]]) -> None:
        self._best = {name: dict(best) for name, best in state.items()}

    def _resolve(self, metric: str, names: Iterable[str]) -> str:
        """What `auto` stands for: the first of the first validation, then always that."""
        if metric != _FIRST:
            return metric
        return next(iter(self._best), next(iter(names), _FIRST))


def _refuse_unfit(metrics: Sequence[str], rules: Sequence[str]) -> None:
    for rule in rules:
        if rule not in ("greater", "less"):
            raise ValueError(f"rule={rule}: use greater or less")
    if len(rules) > 1 and len(rules) != len(metrics):
        raise ValueError(
            f"rule={rules}: give one rule, or one for each metric of save_best={metrics}"
        )
    if _FIRST in metrics and len(metrics) > 1:
        raise ValueError(f"save_best={metrics}: 'auto' stands alone")

"""What "better" means for a metric: one rule for best checkpoints, early stopping and objectives.

A rule is `greater` or `less`. It is inferred from the metric's name where the name tells it, and
asked for where it does not: a wrong guess would keep the worst checkpoint of a run.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from typing import Literal

Rule = Literal["greater", "less"]

RULES: tuple[Rule, ...] = ("greater", "less")
GREATER_KEYS = (
    *("acc", "accuracy", "top", "AR@", "auc", "precision", "mAP", "mDice", "mIoU", "mAcc", "aAcc"),
)
LESS_KEYS = ("loss",)


def parse_rule(rule: str) -> Rule:
    """The rule of that name.

    Raises:
        ValueError: for any other value; the message lists what is allowed.
    """
    for known in RULES:
        if rule == known:
            return known
    raise ValueError(f"rule {rule!r}: use {' or '.join(RULES)}")


def infer_rule(
    metric_name: str,
    greater_keys: Sequence[str] = GREATER_KEYS,
    less_keys: Sequence[str] = LESS_KEYS,
    parameter: str = "metric",
) -> Rule:
    """Whether a greater or a smaller value of a metric is better, as its name tells.

    A name equal to a key decides; else a key inside the name does; upper and lower case are one.
    Of the keys above only whole words count, such as `top` in `val/top-5` and not in `stop_time`,
    or `mAP` in `bbox_mAP_50` and not in `mape`; keys of one's own may be parts of words.

    Raises:
        ValueError: if no key is in the name, or keys of both lists are.
    """
    name = metric_name.lower()
    greater = [key.lower() for key in greater_keys]
    less = [key.lower() for key in less_keys]
    if name in greater:
        return "greater"
    if name in less:
        return "less"
    looks_greater = any(_is_in(key, metric_name, greater_keys is GREATER_KEYS) for key in greater)
    looks_less = any(_is_in(key, metric_name, less_keys is LESS_KEYS) for key in less)
    if looks_greater and not looks_less:
        return "greater"
    if looks_less and not looks_greater:
        return "less"
    both = "fits greater_keys and less_keys" if looks_greater else "has none of the known words"
    raise ValueError(
        f"{parameter}={metric_name}: its name {both} (greater: {', '.join(greater_keys)}; "
        f"less: {', '.join(less_keys)}); set rule to greater or less"
    )


def _is_in(key: str, name: str, as_a_word: bool) -> bool:
    if not as_a_word:
        return key in name.lower()
    in_words = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name)  # `BinaryAccuracy`
    word = rf"(?<![a-z]){re.escape(key)}(?![a-z])"
    return any(re.search(word, text.lower()) for text in (name, in_words))


def require_metric(parameter: str, name: str, metric_names: Iterable[str]) -> None:
    """Refuse a metric that is not measured.

    Raises:
        ValueError: `parameter=name: ...` with the metrics there are.
    """
    if name not in metric_names:
        raise ValueError(
            f"{parameter}={name}: there is no such metric; "
            f"there are: {', '.join(metric_names) or 'none'}"
        )


def is_better(candidate: float, best: float | None, rule: str, min_delta: float = 0.0) -> bool:
    """Whether `candidate` beats `best` by more than `min_delta`.

    NaN beats nothing, a tie changes nothing, and any number beats None or NaN. An infinity is a
    number: the best or the worst there is.

    Raises:
        ValueError: for a rule that is neither `greater` nor `less`.
    """
    rule = parse_rule(rule)
    if math.isnan(candidate):
        return False
    if best is None or math.isnan(best):
        return True
    if rule == "greater":
        return candidate > best + min_delta
    return candidate < best - min_delta

"""The curves of a parameter schedule. In the formulas t counts positions from `begin`.

Names and parameters are MMEngine's; where torch has the same curve, the values are torch's with
`total_iters = end - begin`.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import ClassVar

from hookexp.numeric import is_number, is_whole
from hookexp.optim.param_scheduler import ParamScheduler, is_list, logger


@dataclass(kw_only=True, eq=False)
class ConstantParamScheduler(ParamScheduler):
    """`factor * v` from `begin` to `end`, and v again after that (torch's ConstantLR)."""

    factor: float = 1 / 3

    def check(self) -> None:
        self.require_number("factor", 0)

    def scale_and_offset(self, t: float) -> tuple[float, float]:
        return (self.factor if t < self.length else 1.0), 0.0


@dataclass(kw_only=True, eq=False)
class LinearParamScheduler(ParamScheduler):
    """From `start_factor * v` to `end_factor * v` in a straight line (torch's LinearLR).

    The usual warm-up. `end_factor` is reached at `end` exactly, where the next scheduler begins.
    """

    start_factor: float = 1 / 3
    end_factor: float = 1.0

    @property
    def needs_end(self) -> bool:
        return True

    def check(self) -> None:
        self.require_number("start_factor", 0)
        self.require_number("end_factor", 0)

    def scale_and_offset(self, t: float) -> tuple[float, float]:
        share = t / self.length
        return self.start_factor * (1 - share) + self.end_factor * share, 0.0


@dataclass(kw_only=True, eq=False)
class StepParamScheduler(ParamScheduler):
    """`v * gamma ** (t // step_size)`: a drop every `step_size` positions (torch's StepLR)."""

    changes_at_end: ClassVar[bool] = False
    step_size: int
    gamma: float = 0.1

    def check(self) -> None:
        self.require_whole("step_size", 1)
        self.require_number("gamma", 0)

    def scale_and_offset(self, t: float) -> tuple[float, float]:
        return self.gamma ** (t // self.step_size), 0.0


@dataclass(kw_only=True, eq=False)
class MultiStepParamScheduler(ParamScheduler):
    """`v * gamma ** (milestones passed)`, counted from `begin` (torch's MultiStepLR)."""

    changes_at_end: ClassVar[bool] = False
    milestones: Sequence[int]
    gamma: float = 0.1

    def check(self) -> None:
        given = self.milestones
        whole = is_list(given) and all(is_whole(milestone, 1) for milestone in given)
        if not whole or list(given) != sorted(set(given)):
            raise self.error(
                "milestones", "use a list of increasing whole numbers, 1 or more, such as [60, 80]"
            )
        self.require_number("gamma", 0)

    def scale_and_offset(self, t: float) -> tuple[float, float]:
        return self.gamma ** bisect_right(self.milestones, t), 0.0


@dataclass(kw_only=True, eq=False)
class ExponentialParamScheduler(ParamScheduler):
    """`v * gamma ** t` (torch's ExponentialLR)."""

    gamma: float

    def check(self) -> None:
        self.require_number("gamma", 0)

    def scale_and_offset(self, t: float) -> tuple[float, float]:
        return self.gamma**t, 0.0


@dataclass(kw_only=True, eq=False)
class _CosineForm(ParamScheduler):
    """What both cosines are: `low + share * (v - low)`, with the lowest value given in two ways."""

    eta_min: float = 0.0
    """The lowest value."""
    eta_min_ratio: float | None = None
    """The lowest value as a share of v, which keeps the groups' proportions; instead of eta_min."""

    def check(self) -> None:
        self.require_number("eta_min")
        if self.eta_min_ratio is not None:
            self.require_number("eta_min_ratio", 0)
            if self.eta_min != 0:
                raise self.error(
                    "eta_min_ratio", f"eta_min={self.eta_min} is given too; set one to 0 or null"
                )

    def _up_by(self, share: float) -> tuple[float, float]:
        """The map to `share` of the way from the lowest value up to v."""
        if self.eta_min_ratio is None:
            return share, self.eta_min * (1 - share)
        return share + self.eta_min_ratio * (1 - share), 0.0


@dataclass(kw_only=True, eq=False)
class CosineAnnealingParamScheduler(_CosineForm):
    """`eta_min + (v - eta_min) * (1 + cos(pi * t / T_max)) / 2` (torch's CosineAnnealingLR).

    The formula of SGDR (https://arxiv.org/abs/1608.03983) without the restarts. With a T_max of
    its own it goes up again after T_max, as torch's does, until `end`.
    """

    T_max: int | None = None
    """Positions from the top to the bottom; None is up to `end`."""

    @property
    def needs_end(self) -> bool:
        return self.T_max is None

    def check(self) -> None:
        super().check()
        if self.T_max is not None and not is_whole(self.T_max, 1):
            raise self.error("T_max", "use a whole number, 1 or more, or null (up to `end`)")

    def scale_and_offset(self, t: float) -> tuple[float, float]:
        half_period = self.T_max or self.length
        return self._up_by((1 + math.cos(math.pi * t / half_period)) / 2)


@dataclass(kw_only=True, eq=False)
class CosineRestartParamScheduler(_CosineForm):
    """Cosine annealing that starts again: SGDR, https://arxiv.org/abs/1608.03983.

    After s of the p positions of period i: `eta_min + w_i * (v - eta_min) * (1 + cos(pi*s/p)) / 2`.
    After the last period the lowest value stays.
    """

    periods: Sequence[int]
    """Positions of each period."""
    restart_weights: Sequence[float] = (1.0,)
    """How far up, from the lowest value to v, each period starts; one weight serves them all."""

    def check(self) -> None:
        super().check()
        if not is_list(self.periods) or not all(is_whole(p, 1) for p in self.periods):
            raise self.error("periods", "use a list of whole numbers, 1 or more, such as [10, 20]")
        self._ends = list(accumulate(self.periods))
        weights = self.restart_weights
        fits = is_list(weights) and len(weights) in (1, len(self.periods))
        if not fits or not all(is_number(w) and w >= 0 for w in weights):
            raise self.error(
                "restart_weights",
                f"use a list of one number from 0, or one for each of {len(self.periods)} periods",
            )
        self._weights = [*weights] * (len(self.periods) if len(weights) == 1 else 1)

    def bind(self, name: str, max_epochs: int | None, max_steps: int | None) -> None:
        super().bind(name, max_epochs, max_steps)
        if math.isfinite(self.length) and self._ends[-1] < self.length:
            logger.warning(
                "param_scheduler.%s: its periods are %d %s long and the schedule %d: "
                "the lowest value stays for the rest",
                *(name, self._ends[-1], "epochs" if self.counts_epochs else "steps", self.length),
            )

    def scale_and_offset(self, t: float) -> tuple[float, float]:
        index = bisect_right(self._ends, t)
        if index == len(self.periods):
            return self._up_by(0.0)
        period = self.periods[index]
        into_period = t - (self._ends[index] - period)
        share = (1 + math.cos(math.pi * into_period / period)) / 2
        return self._up_by(self._weights[index] * share)


@dataclass(kw_only=True, eq=False)
class PolyParamScheduler(ParamScheduler):
    """`eta_min + (v - eta_min) * (1 - t / (end - begin)) ** power` (torch's PolynomialLR)."""

    power: float = 1.0
    eta_min: float = 0.0

    @property
    def needs_end(self) -> bool:
        return True

    def check(self) -> None:
        self.require_number("power", 0, above=True)
        self.require_number("eta_min")

    def scale_and_offset(self, t: float) -> tuple[float, float]:
        share = (1 - t / self.length) ** self.power
        return share, self.eta_min * (1 - share)


@dataclass(kw_only=True, eq=False)
class OneCycleParamScheduler(ParamScheduler):
    """Up to `eta_max` and down again (torch's OneCycleLR).

    From `eta_max / div_factor` up in the first `pct_start` of the cycle, then down to that first
    value divided by `final_div_factor`, which is reached at the cycle's last position. See
    Super-Convergence, https://arxiv.org/abs/1708.07120.

    torch cycles the momentum the other way round at the same time; here that is a second
    scheduler with param_name=momentum, eta_max=0.85, div_factor=0.8947 (0.85 / 0.95) and
    final_div_factor=1.
    """

    eta_max: float | None = None
    """The top, the same for every parameter group; None is each group's own value."""
    total_steps: int | None = None
    """Positions of the cycle; None is up to `end`."""
    pct_start: float = 0.3
    anneal_strategy: str = "cos"
    """`cos` or `linear`."""
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False
    """Down to the first value in a phase as long as the way up, and to the lowest in a third."""

    _phases: list[tuple[float, float, float, float]] = field(init=False, default_factory=list)
    """(t at its start, t at its end, share of eta_max at its start, at its end)."""

    @property
    def needs_end(self) -> bool:
        return self.total_steps is None

    def check(self) -> None:
        if self.eta_max is not None:
            self.require_number("eta_max")
        self.require_number("div_factor", 0, above=True)
        self.require_number("final_div_factor", 0, above=True)
        self.require_number("pct_start", 0, 0.5 if self.three_phase else 1)
        self.require_one_of("anneal_strategy", ("cos", "linear"))
        if self.total_steps is not None and not is_whole(self.total_steps, 1):
            raise self.error("total_steps", "use a whole number, 1 or more, or null (up to `end`)")

    def _measure(self, end: int | None) -> None:
        super()._measure(end)
        total = self.total_steps or self.length
        first_share = 1 / self.div_factor
        last_share = first_share / self.final_div_factor
        top, last = self.pct_start * total - 1, total - 1
        turns = [(top, 1.0), (last, last_share)]
        if self.three_phase:
            turns.insert(1, (2 * top, first_share))
        self._phases = []
        begins, begin_share = 0.0, first_share
        for ends, end_share in turns:
            self._phases.append((begins, max(ends, begins), begin_share, end_share))
            begins, begin_share = max(ends, begins), end_share

    def scale_and_offset(self, t: float) -> tuple[float, float]:
        share = self._share_of_top(t)
        return (share, 0.0) if self.eta_max is None else (0.0, share * self.eta_max)

    def _share_of_top(self, t: float) -> float:
        for begins, ends, begin_share, end_share in self._phases:
            if t <= ends and begins < ends:
                progress = (t - begins) / (ends - begins)
                if self.anneal_strategy == "cos":
                    progress = (1 - math.cos(math.pi * progress)) / 2
                return begin_share + (end_share - begin_share) * progress
        return self._phases[-1][3]

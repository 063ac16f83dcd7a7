"""`ParamScheduler`: the value of a parameter group's entry as a function of the position."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from hookexp.errors import ConfigError
from hookexp.numeric import is_number, is_whole

logger = logging.getLogger("hookexp")


@dataclass(kw_only=True, eq=False)
class ParamScheduler:
    """Base class: a closed form over positions from `begin` to `end`.

    A closed form, and not a recursion on the current value: so a run that resumes needs only its
    position, a changed config takes effect at once, and several schedulers on one value compose.
    Before `begin` a scheduler changes nothing; from `end` on it holds what it came to.

    Subclasses give `scale` and `offset` at a position: each scheduler maps a value v to
    `scale * v + offset`, the same for every parameter group, so the function is evaluated once
    per position however many groups there are.

    Raises:
        ValueError: for values that cannot be; the message says what is allowed.
    """

    param_name: str = "lr"
    """`lr`, `momentum` (SGD's, or betas[0] of Adam and its kin), `weight_decay`, or any other
    number in the optimizer's parameter groups."""
    begin: int = 0
    """The first position that is changed, in finished epochs or optimizer steps."""
    end: int | None = None
    """The position where the curve ends; None is the end of the run."""
    by_epoch: bool | None = None
    """Whether positions count finished epochs, or else optimizer steps. None counts what the
    budget of the run counts: epochs with max_epochs, steps with max_iters."""

    changes_at_end: ClassVar[bool] = True
    """Whether a curve arrives at its last value at `end`; stairs take no step there any more."""

    counts_epochs: bool = field(init=False, default=False)
    """`by_epoch`, decided."""
    length: float = field(init=False, default=math.inf)
    """Positions from `begin` to the end; infinite while that is not known."""

    def __post_init__(self) -> None:
        if not isinstance(self.param_name, str) or not self.param_name:
            raise self.error("param_name", "use a key of the optimizer's parameter groups")
        if self.by_epoch is not None and not isinstance(self.by_epoch, bool):
            raise self.error("by_epoch", "use true, false or null (what the run's budget counts)")
        self.require_whole("begin", 0)
        if self.end is not None:
            self.require_whole("end", 1)
            if self.end <= self.begin:
                raise self.error("end", f"use a number above begin={self.begin}, or null")
        self.check()
        self._measure(self.end)

    @property
    def needs_end(self) -> bool:
        """Whether the curve cannot be drawn without knowing where it ends."""
        return False

    def check(self) -> None:
        """Refuse a subclass's own values that cannot be."""

    def scale_and_offset(self, t: float) -> tuple[float, float]:
        """The map at `t` positions after `begin`, 0 <= t <= length."""
        raise NotImplementedError

    def bind(self, name: str, max_epochs: int | None, max_steps: int | None) -> None:
        """Learn how long the run is.

        Args:
            name: the key in the config, for messages.
            max_epochs: None for a run by iterations.
            max_steps: optimizer steps of the run; None if the data cannot tell.

        Raises:
            ConfigError: for epochs in a run that has none, or an end that cannot be known.
        """
        self.counts_epochs = max_epochs is not None if self.by_epoch is None else self.by_epoch
        if self.counts_epochs and max_epochs is None:
            raise ConfigError(
                f"param_scheduler.{name}.by_epoch=true: this run counts iterations and has no "
                "epochs; set by_epoch=false and give begin, end and all else in optimizer steps"
            )
        run_end = max_epochs if self.counts_epochs else max_steps
        end = run_end if self.end is None else self.end
        if end is None and self.needs_end:
            raise ConfigError(
                f"param_scheduler.{name}.end=null: the data cannot tell how many steps the run "
                "has; set end to a number of optimizer steps, or by_epoch=true"
            )
        self._measure(end)
        if run_end is not None and self.begin >= run_end:
            logger.warning(
                "param_scheduler.%s never starts: it begins at %d, and the run has %d %s",
                *(name, self.begin, run_end, "epochs" if self.counts_epochs else "steps"),
            )

    def apply(self, values: list[float], position: int) -> list[float]:
        """The values, one for each parameter group, as this scheduler changes them."""
        t = position - self.begin
        if t < 0:
            return values
        scale, offset = self.scale_and_offset(t if t < self._last_t else self._last_t)
        return [scale * value + offset for value in values]

    def state_dict(self) -> dict[str, Any]:
        """What does not follow from config and position: nothing, unless a subclass says so."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Put back what `state_dict` returned."""

    # -- checks ---------------------------------------------------------------------------------

    def error(self, key: str, advice: str) -> ValueError:
        return ValueError(f"{type(self).__name__}: {key}={getattr(self, key)!r}: {advice}")

    def require_whole(self, key: str, least: int) -> None:
        if not is_whole(getattr(self, key), least):
            raise self.error(key, f"use a whole number, {least} or more")

    def require_number(
        self, key: str, least: float = -math.inf, most: float = math.inf, above: bool = False
    ) -> None:
        """Refuse what is not a finite number from `least` (itself not, if `above`) to `most`."""
        value = getattr(self, key)
        fits = is_number(value) and least <= value <= most and not (above and value == least)
        if fits:
            return
        bounds = "" if least == -math.inf else f" {'above' if above else 'from'} {least:g}"
        bounds += "" if most == math.inf else f" to {most:g}"
        raise self.error(key, f"use a number{bounds}")

    def require_one_of(self, key: str, allowed: tuple[str, ...]) -> None:
        if getattr(self, key) not in allowed:
            raise self.error(key, f"use {' or '.join(allowed)}")

    def _measure(self, end: int | None) -> None:
        self.length = math.inf if end is None else max(end - self.begin, 1)
        self._last_t = self.length if self.changes_at_end else self.length - 1


def is_list(value: Any) -> bool:
    """Whether it is a sequence with something in it (a string is not)."""
    return isinstance(value, Sequence) and not isinstance(value, str) and len(value) > 0

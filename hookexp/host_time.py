"""`HostTime`: what share of a run's time each hook and the data take. Always on, and free.

The mount points of a training iteration are called through a timed path in one iteration of a
hundred (more often in a run of less than 2,000); all other mount points are rare and always timed.
A hook is charged for what it does itself, not for the mount points it opens to others.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hookexp.hook_list import HookList
    from hookexp.state import FetchClock

ONE_IN = 100
_GOLDEN_RATIO = 0.6180339887498949
"""Successive samples move by this part of their hundreds. Its multiples, modulo 1, are spread
evenly, so that what happens every 10 or 100 iterations, such as a log line, is met as often as it
occurs."""

ITERATION_POINTS = frozenset(
    ("before_train_iter", "after_train_iter", "before_optim_step", "after_optim_step")
)
ENOUGH = 10
"""Timed iterations from which on shares are shown; a short run times twice as many."""
LONG = 10.0
"""Seconds of a loop in which what hooks do now and then, such as a save, has its proper share."""


@dataclass(frozen=True)
class Shares:
    """Parts of the time of a training or an evaluation on the host, each between 0 and 1."""

    data: float = 0.0
    """Waiting for batches."""
    hooks: dict[str, float] = field(default_factory=dict)
    """Each hook by its name in the config, the largest first."""
    training_hooks: dict[str, float] = field(default_factory=dict)
    """Hooks that do the training itself, such as backward and the optimizer's step."""
    iterations_timed: int = 0
    hook_errors: dict[str, float] = field(default_factory=dict)
    """How much of each hook's share may be chance.

    It is the standard error of what it did in the iterations, of which a few were timed; in a loop
    that was not long, all that it did between them.
    """

    def describe(self) -> str:
        """One line for the end of a run, empty where too little was timed to say anything.

        `host time: data 2.1 %, hooks 1.3 % (logger 0.9 %, iter_timer 0.2 %)`
        """
        if self.iterations_timed < ENOUGH:
            return ""
        largest = [f"{n} {_percent(s)}" for n, s in list(self.hooks.items())[:3] if s >= 5e-4]
        detail = f" ({', '.join(largest)})" if largest else ""
        hooks = _percent(sum(self.hooks.values()))
        return f"host time: data {_percent(self.data)}, hooks {hooks}{detail}"

    def over(self, budget: float | None) -> list[str]:
        """A warning about each hook that takes a larger share than it may, by more than its error.

        One slow moment in an iteration that was timed has an error as large as itself.
        """
        if budget is None or self.iterations_timed < ENOUGH:
            return []
        return [
            f"hook '{name}' took {_percent(share)} of the host's time, more than "
            f"trainer.hook_budget={budget}: call it less often, or drop it with hooks=-{name}"
            for name, share in self.hooks.items()
            if share - self.hook_errors.get(name, 0.0) > budget
        ]


class HostTime:
    """Collects the seconds; one for each run."""

    def __init__(self) -> None:
        self.next_iter = -1
        """The training iteration, counted from 0, that is timed next."""
        self._one_in = ONE_IN
        self._first_iter = 0
        self._seconds = 0.0
        self._num_timed = 0
        self._data = 0.0
        self._sampled: defaultdict[str, float] = defaultdict(float)
        self._squares: defaultdict[str, float] = defaultdict(float)
        """The sum over the timed iterations of a hook's seconds in one of them, squared."""
        self._always: defaultdict[str, float] = defaultdict(float)
        self._inner = [0.0]
        """Seconds spent in mount points opened by the hook that is running, innermost last."""

    def begin(self, iteration: int, max_iters: int | None) -> None:
        """Training begins, or is continued, at an iteration, and ends at another, if known."""
        if max_iters is not None:
            self._one_in = min(max((max_iters - iteration) // (2 * ENOUGH), 1), ONE_IN)
        self._first_iter = iteration
        self._schedule(iteration)

    @contextmanager
    def iteration(self, hooks: HookList, clock: FetchClock) -> Iterator[None]:
        """The iteration `next_iter`: its hooks are called through the timed path."""
        iteration = self.next_iter
        before = dict(self._sampled)
        with hooks.timed():
            yield
        for name, seconds in self._sampled.items():
            self._squares[name] += (seconds - before.get(name, 0.0)) ** 2
        self._num_timed += 1
        self._data += clock.ended - clock.began
        self._schedule(iteration + 1)

    def wrap(self, method: Callable[..., Any], point: str, name: str) -> Callable[..., Any]:
        """A listener that charges its hook, see `HookList.wrap_listeners`."""
        account = self._sampled if point in ITERATION_POINTS else self._always
        inner = self._inner

        def timed(*args: Any, **kwargs: Any) -> None:
            inner.append(0.0)
            began = perf_counter()
            try:
                method(*args, **kwargs)
            finally:
                seconds = perf_counter() - began
                account[name] += seconds - inner.pop()
                inner[-1] += seconds

        return timed

    @contextmanager
    def whole_loop(self) -> Iterator[None]:
        """The time that shares are parts of: all of a training, or of an evaluation."""
        self._always.clear()  # What hooks did before is no part of it.
        began = perf_counter()
        yield
        self._seconds = perf_counter() - began

    def shares(self, iteration: int, training_hooks: Collection[str]) -> Shares:
        """The shares in a loop that has ended at a training iteration.

        Args:
            iteration: the number of training iterations finished, those before a resume included.
            training_hooks: names of the hooks that do the training itself.
        """
        scale = (iteration - self._first_iter) / max(self._num_timed, 1)
        shares = {
            name: (scale * self._sampled[name] + self._always[name]) / self._seconds
            for name in {*self._sampled, *self._always}
        }
        by_size = sorted(shares.items(), key=lambda item: -item[1])
        return Shares(
            data=scale * self._data / self._seconds,
            hooks={name: share for name, share in by_size if name not in training_hooks},
            training_hooks={name: share for name, share in by_size if name in training_hooks},
            iterations_timed=self._num_timed,
            hook_errors={
                name: (scale * self._error(name) + self._rare(name)) / self._seconds
                for name in shares
                if name not in training_hooks
            },
        )

    def _error(self, name: str) -> float:
        """The standard error of a hook's seconds in all iterations that were timed."""
        count = self._num_timed
        spread = self._squares[name] - self._sampled[name] ** 2 / max(count, 1)
        return math.sqrt(max(spread, 0.0) * count / max(count - 1, 1))

    def _rare(self, name: str) -> float:
        return self._always[name] if self._seconds < LONG else 0.0

    def _schedule(self, earliest: int) -> None:
        block = earliest // self._one_in
        self.next_iter = self._sample_of(block)
        if self.next_iter < earliest:
            self.next_iter = self._sample_of(block + 1)

    def _sample_of(self, block: int) -> int:
        """The iteration of a block, of a hundred or as many as one is timed of, that is timed."""
        return int(self._one_in * (block + (block + 1) * _GOLDEN_RATIO % 1.0))


def _percent(share: float) -> str:
    return f"{100 * share:.{0 if share >= 0.1 else 1}f} %"

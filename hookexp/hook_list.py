"""`HookList`: the hooks of a run in call order, with one pre-bound call per mount point.

The loop writes `hooks.before_train_iter(runner, batch_idx=..., data_batch=...)` as if the list
were one hook. Who listens to a mount point is found out when a hook is registered; a call is a
plain loop over bound methods, and a mount point nobody listens to is a call of an empty function.
"""

from __future__ import annotations

import bisect
import difflib
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from hookexp.contracts import check_contracts
from hookexp.errors import ConfigError
from hookexp.hook import FAN_INS, MOUNT_POINTS, Hook, Priority
from hookexp.host_time import ITERATION_POINTS
from hookexp.listeners import ALL_HOOKS, MMCV_FAN_INS, HookEntry, Listeners, Wrapper, listeners_of

if TYPE_CHECKING:
    from hookexp.runner import Runner


class HookList(Hook):
    """Hooks sorted by priority number, then by the order in which they were registered.

    Takes any object with methods named after mount points: subclasses of `Hook`, hooks written
    for MMEngine (`get_triggered_stages`, `_before_iter(..., mode)`) and for MMCV (`before_epoch`,
    methods that take fewer arguments).
    """

    def __init__(self) -> None:
        self.entries: tuple[HookEntry, ...] = ()
        self._opened: dict[str, str] = {}
        self._listeners: dict[str, Listeners] = {}
        self._wrappers: tuple[Wrapper, ...] = ()
        self._clock: Wrapper | None = None
        self._calls: dict[str, Callable[..., Any]] = {}
        self._timed_calls: dict[str, Callable[..., Any]] | None = None
        self._bind()

    def register(self, hook: Any, name: str, priority: int | str | None = None) -> None:
        """Add a hook under its config name; inside a mount point it first runs at the next call.

        Raises:
            ConfigError: for a bad priority, a hook that is registered already, a second hook that
                swaps the model's weights, or a method that is a near miss of a mount point.
        """
        number = _effective_priority(hook, name, priority)
        self._refuse_doubles(hook, name)
        opened = [point for point in getattr(hook, "opens", ()) if point not in self._listeners]
        for point in getattr(hook, "opens", ()):
            self._opened.setdefault(point, name)
        entries = [_with_more(entry, opened) if opened else entry for entry in self.entries]
        entry = _with_more(HookEntry(name, hook, number, {}), (*self._listeners, *opened))
        bisect.insort_right(entries, entry, key=lambda e: e.priority)
        self.entries = tuple(entries)
        self._bind()

    def ask_again(self, hook: Any) -> None:
        """Bind a hook anew that has learned from the run at which mount points it has to be called.

        It is asked by `get_triggered_stages`; inside a mount point this counts from the next call.
        """
        points = (*MOUNT_POINTS, *self._opened)
        self.entries = tuple(
            _with_more(replace(entry, listeners={}), points) if entry.hook is hook else entry
            for entry in self.entries
        )
        self._bind()

    def check_method_names(self) -> None:
        """Refuse methods that look like mount points and are none.

        Called once all hooks are in, because a hook may open mount points for others.
        """
        for entry in self.entries:
            _refuse_near_misses(entry, (*MOUNT_POINTS, *self._opened))
            if not entry.stages and not isinstance(entry.hook, Hook):
                raise ConfigError(
                    f"hooks.{entry.name}: {type(entry.hook).__name__} has no method that is called "
                    "like a mount point, so it is no hook; mount points: "
                    f"{', '.join(MOUNT_POINTS)}"
                )

    def check_contracts(self) -> None:
        """Refuse hooks that do not go together; called once all are in."""
        check_contracts(self.entries)

    def __getitem__(self, name: str) -> Any:
        for entry in self.entries:
            if entry.name == name:
                return entry.hook
        raise KeyError(f"no hook {name!r}; there are: {', '.join(e.name for e in self.entries)}")

    def __iter__(self) -> Iterator[Any]:
        return (entry.hook for entry in self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def that_train(self) -> frozenset[str]:
        """Names of the hooks whose time is the training itself, such as the optimizer's."""
        return frozenset(e.name for e in self.entries if getattr(e.hook, "trains", False))

    def that_are_never_called(self) -> list[str]:
        """Names of the hooks that have no mount point at all, as one of another framework has."""
        names = (*MOUNT_POINTS, *FAN_INS, "get_triggered_stages")
        return [
            entry.name
            for entry in self.entries
            if not entry.stages
            and isinstance(entry.hook, Hook)
            and not entry.hook.opens
            and not any(map(entry.hook._overrides, names))
        ]

    def suffix_of(self, hook: Any) -> str:
        """What tells the files of a hook from those of others of its class; empty for the first."""
        alike = [entry for entry in self.entries if type(entry.hook) is type(hook)]
        return next((f"_{entry.name}" for entry in alike[1:] if entry.hook is hook), "")

    def call(self, point: str, runner: Runner, **kwargs: Any) -> None:
        """Call a mount point by name: one of ours, or one that a registered hook opens."""
        if point not in MOUNT_POINTS and point not in self._opened:
            raise ValueError(
                f"mount point {point!r} does not exist: a hook that calls it has to declare "
                f"`opens = ({point!r},)`"
            )
        getattr(self, point)(runner, **kwargs)

    def wrap_listeners(self, wrap: Wrapper) -> Callable[[], None]:
        """Measure or name the calls of hooks for a while; returns the undo.

        Every listener is called through `wrap(listener, mount point, hook's name)`, and every
        mount point somebody listens to through `wrap(call, mount point, ALL_HOOKS)`. This and the
        undo take effect at the next call of a mount point; it costs nothing while it is not used.
        """
        own = partial(wrap)  # Two that wrap with the same function undo their own.
        self._wrappers = (*self._wrappers, own)
        self._set_calls()

        def undo() -> None:
            self._wrappers = tuple(w for w in self._wrappers if w is not own)
            self._set_calls()

        return undo

    def time_with(self, clock: Wrapper) -> None:
        """Have the calls of hooks timed: inside `timed()` and, at rare mount points, always."""
        self._clock = clock
        self._set_calls()

    @contextmanager
    def timed(self) -> Iterator[None]:
        """Call the mount points of an iteration through the clock of `time_with`."""
        if self._timed_calls is None:
            self._timed_calls = {point: self._call_of(point, True) for point in ITERATION_POINTS}
        vars(self).update(self._timed_calls)
        try:
            yield
        finally:
            vars(self).update(self._calls)

    def _bind(self) -> None:
        """Gather the listeners of every mount point."""
        points = (*MOUNT_POINTS, *self._opened)
        self._listeners = {point: Listeners([], []) for point in points}
        for entry in self.entries:
            for point, method in entry.listeners.items():
                self._listeners[point].add(entry.name, method)
        self._set_calls()

    def _set_calls(self) -> None:
        """Set the call of every mount point as an attribute of the list."""
        self._calls = {
            point: self._call_of(point, is_timed=point not in ITERATION_POINTS)
            for point in self._listeners
        }
        self._timed_calls = None
        vars(self).update(self._calls)

    def _call_of(self, point: str, is_timed: bool) -> Callable[..., Any]:
        listeners = self._listeners[point]
        for wrap in self._wrappers:
            listeners = listeners.wrapped(wrap, point)
        if is_timed and self._clock is not None:
            listeners = listeners.wrapped(self._clock, point)
        call = listeners.as_call(point)
        if listeners.methods:
            for wrap in self._wrappers:
                call = wrap(call, point, ALL_HOOKS)
        return call

    def _refuse_doubles(self, hook: Any, name: str) -> None:
        for entry in self.entries:
            if entry.hook is hook:
                raise ConfigError(
                    f"hooks.{name}: this object is registered already, as hooks.{entry.name}"
                )
            if entry.name == name:
                raise ConfigError(f"hooks.{name}: there is a hook of this name already")
            if getattr(hook, "swaps_weights", False) and getattr(
                entry.hook, "swaps_weights", False
            ):
                raise ConfigError(
                    f"hooks.{name} and hooks.{entry.name} both exchange the model's weights "
                    f"during validation; only one may: drop one with hooks=-{name}"
                )


def _with_more(entry: HookEntry, points: Iterable[str]) -> HookEntry:
    """The same hook, listening to what it serves of more mount points."""
    more = listeners_of(entry.hook, entry.name, points)
    return replace(entry, listeners={**entry.listeners, **more})


def _effective_priority(hook: Any, name: str, priority: int | str | None) -> int:
    value = getattr(hook, "priority", Priority.NORMAL) if priority is None else priority
    try:
        return Priority.parse(value)
    except ValueError as error:
        raise ConfigError(f"hooks.{name}: {error}") from None


def _refuse_near_misses(entry: HookEntry, points: Sequence[str]) -> None:
    known = {*points, *FAN_INS, *MMCV_FAN_INS}
    ours = isinstance(entry.hook, Hook)
    for name in dir(type(entry.hook)):
        if name in known or name.startswith("__") or hasattr(Hook, name):
            continue
        if not callable(getattr(type(entry.hook), name, None)):
            continue
        nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.88)
        looks_like_one = ours and name.startswith(("before_", "after_"))
        if nearest or looks_like_one:
            nearest = nearest or difflib.get_close_matches(name, known, n=1, cutoff=0.0)
            raise ConfigError(
                f"hooks.{entry.name}: {type(entry.hook).__name__}.{name} is not a mount point and "
                f"would never be called; did you mean {nearest[0]}? (A helper of your own: begin "
                f"its name with an underscore. Mount points: {', '.join(points)})"
            )

"""Who listens to a mount point: a hook's methods, bound once with the arguments they take.

A hook is any object with methods of the right names. What a method needs and its fan-ins are found
out here, when hooks are registered, so that a call is a plain loop over bound methods.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from hookexp.compat.runner_view import start_of_schedules, with_view
from hookexp.errors import ConfigError, add_note
from hookexp.hook import FAN_INS, MOUNT_POINTS, Hook

if TYPE_CHECKING:
    from hookexp.runner import Runner

Listener = Callable[..., Any]
Wrapper = Callable[[Listener, str, str], Listener]
"""Makes a new function of (runner, *args, **kwargs) from a call, its mount point and its hook."""

ALL_HOOKS = "*"
"""Stands for the hook's name where a wrapper gets the call of a whole mount point."""

MMCV_FAN_INS = {fan_in.removeprefix("_"): served for fan_in, served in FAN_INS.items()}
_ARGUMENTS: dict[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(getattr(Hook, name)).parameters)[2:] for name in MOUNT_POINTS
}
_FAN_IN_OF = {point: fan_in for fan_in, served in FAN_INS.items() for point in served}
_CALLED_TO_THE_END = ("on_exception", "after_run")


@dataclass(frozen=True)
class HookEntry:
    """A registered hook: its Hydra key, the object, its number and its listeners by mount point."""

    name: str
    hook: Any
    priority: int
    listeners: Mapping[str, Listener]

    @property
    def stages(self) -> tuple[str, ...]:
        """The mount points it serves."""
        return tuple(self.listeners)


def listeners_of(hook: Any, name: str, points: Iterable[str]) -> dict[str, Listener]:
    """The hook's methods by mount point, as functions of the point's own arguments.

    A hook that is not of our base class is handed a view of the runner, which has the names that
    MMEngine and MMCV gave its parts beside our own.
    """
    stages = hook.get_triggered_stages() if hasattr(hook, "get_triggered_stages") else ()
    found = {}
    for point in points:
        method = _bound_method(hook, name, point, stages)
        if not isinstance(hook, Hook):
            method = with_view(method, point) if method else start_of_schedules(hook, point)
        if method is not None:
            found[point] = method
    return found


def _bound_method(hook: Any, name: str, point: str, stages: Collection[str]) -> Listener | None:
    has_method = callable(getattr(hook, point, None))
    if point in stages or (has_method and not _is_inherited_no_op(hook, point)):
        fan_in = _FAN_IN_OF.get(point) if _hands_on(hook, point) else None
        return _fitted(hook, name, getattr(hook, fan_in or point), point, fan_in is not None)
    for fan_in, served in (*FAN_INS.items(), *MMCV_FAN_INS.items()):
        method = getattr(hook, fan_in, None)
        if point in served and callable(method) and not _is_inherited_no_op(hook, fan_in):
            return _fitted(hook, name, method, point, fan_in in FAN_INS)
    return None


def _hands_on(hook: Any, point: str) -> bool:
    """Whether a hook of ours has a fan-in there: the base class hands on more than it may take."""
    inherits = getattr(type(hook), point, None) is getattr(Hook, point, None)
    return inherits and point not in getattr(hook, "__dict__", ())


def _is_inherited_no_op(hook: Any, method: str) -> bool:
    """Whether a hook merely has the method from its framework's base class.

    Base classes are told by their answering `get_triggered_stages` themselves: what such a class
    defines is an empty body or a fan-in.
    """
    if method in getattr(hook, "__dict__", ()):
        return False
    for cls in type(hook).__mro__:
        if method in vars(cls):
            return "get_triggered_stages" in vars(cls)
    return False


def _fitted(hook: Any, name: str, method: Listener, point: str, is_fan_in: bool) -> Listener:
    """Bind a method once with the arguments it takes, so that a call does not have to look.

    Args:
        is_fan_in: one that takes any argument is given the mode too.
    """
    given = _ARGUMENTS.get(point)
    if given is None:
        return method
    mode = point.split("_")[1]
    parameters = list(inspect.signature(method).parameters.values())
    if not parameters:
        raise ConfigError(
            f"hooks.{name}: {type(hook).__name__}.{method.__name__} takes no argument; "
            f"its first one, after self, has to be the runner"
        )
    parameters = parameters[1:]
    kinds = {p.kind for p in parameters}
    names = [p.name for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
    needed = [
        p.name
        for p in parameters
        if p.default is p.empty and p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)
    ]
    unknown = [name for name in needed if name not in (*given, "mode")]
    if unknown:
        raise ConfigError(
            f"hooks.{name}: {type(hook).__name__}.{method.__name__} takes "
            f"{', '.join(unknown)}, but {point} gives runner, {', '.join(given) or 'nothing more'}"
        )
    by_place = [p.name for p in parameters if p.kind is not inspect.Parameter.KEYWORD_ONLY]
    takes_any = inspect.Parameter.VAR_KEYWORD in kinds
    takes_mode = "mode" in names or (is_fan_in and takes_any)
    if by_place[: len(given)] == list(given):
        return _named_after(method, partial(method, mode=mode)) if takes_mode else method
    taken = [name for name in given if takes_any or name in names]

    if takes_mode:

        def call_with_mode(runner: Runner, *args: Any, **kwargs: Any) -> None:
            values = dict(zip(given, args), **kwargs)  # noqa: B905
            method(runner, mode=mode, **{n: values[n] for n in taken if n in values})

        return _named_after(method, call_with_mode)

    def call(runner: Runner, *args: Any, **kwargs: Any) -> None:
        values = dict(zip(given, args), **kwargs)  # noqa: B905
        method(runner, **{n: values[n] for n in taken if n in values})

    return _named_after(method, call)


def _named_after(method: Listener, wrapper: Listener) -> Listener:
    wrapper.__self__ = getattr(method, "__self__", None)  # type: ignore[attr-defined]
    return wrapper


class Listeners:
    """The bound methods of one mount point, and the names of their hooks."""

    def __init__(self, names: list[str], methods: list[Listener]) -> None:
        self.names = names
        self.methods = methods

    def add(self, name: str, method: Listener) -> None:
        self.names.append(name)
        self.methods.append(method)

    def wrapped(self, wrap: Wrapper, point: str) -> Listeners:
        """The same hooks, each called through what `wrap` makes of its method."""
        pairs = list(zip(self.names, self.methods, strict=True))
        return Listeners(self.names, [_named_after(m, wrap(m, point, name)) for name, m in pairs])

    def as_call(self, point: str) -> Listener:
        """One function that calls all; iteration points avoid the cost of keyword arguments."""
        methods = tuple(self.methods)
        if not methods:
            return _nobody_listens if point in _ARGUMENTS else _nobody_listens_at_an_opened_point
        if point in _CALLED_TO_THE_END:
            return self._as_call_to_the_end(point)
        arguments = _ARGUMENTS.get(point)

        if arguments == ("batch_idx", "data_batch", "outputs"):

            def call_after_iter(
                runner: Runner, batch_idx: int, data_batch: Any = None, outputs: Any = None
            ) -> None:
                try:
                    for method in methods:
                        method(runner, batch_idx, data_batch, outputs)
                except BaseException as error:
                    self._blame(error, method, point, runner)
                    raise

            return call_after_iter

        if arguments == ("batch_idx", "data_batch"):

            def call_before_iter(runner: Runner, batch_idx: int, data_batch: Any = None) -> None:
                try:
                    for method in methods:
                        method(runner, batch_idx, data_batch)
                except BaseException as error:
                    self._blame(error, method, point, runner)
                    raise

            return call_before_iter

        def call(runner: Runner, **kwargs: Any) -> None:
            try:
                for method in methods:
                    method(runner, **kwargs)
            except BaseException as error:
                self._blame(error, method, point, runner)
                raise

        return call

    def _as_call_to_the_end(self, point: str) -> Listener:
        """A call for clean-up points: every hook gets its turn, the first error is raised last."""

        def call(runner: Runner, **kwargs: Any) -> None:
            first_error: BaseException | None = None
            for method in self.methods:
                try:
                    method(runner, **kwargs)
                except BaseException as error:
                    self._blame(error, method, point, runner)
                    first_error = first_error or error
            if first_error is not None:
                raise first_error

        return call

    def _blame(self, error: BaseException, method: Listener, point: str, runner: Runner) -> None:
        name = next(n for n, m in zip(self.names, self.methods, strict=True) if m is method)
        hook = getattr(method, "__self__", None)
        class_name = "" if hook is None else f" ({type(hook).__name__})"
        add_note(
            error,
            f"in hook '{name}'{class_name} at {point}, epoch {runner.epoch}, iter {runner.iter}",
        )


def _nobody_listens(
    runner: Runner,
    batch_idx: int = 0,
    data_batch: Any = None,
    outputs: Any = None,
    metrics: Any = None,
    checkpoint: Any = None,
    error: Any = None,
) -> None:
    """Named parameters: packing arguments into a dict would cost more than all the rest."""


def _nobody_listens_at_an_opened_point(runner: Runner, **kwargs: Any) -> None:
    pass

"""The error boundary: a mistake ends as one message and exit code 1, a bug with its traceback."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import hydra
import omegaconf
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig

from hookexp.compose.conf_dir import with_hydra
from hookexp.errors import ConfigError

_HYDRA_SWITCH = "HYDRA_FULL_ERROR"
_OUR_SWITCH = "HOOKEXP_SHORT_ERRORS"
"""Set while `HYDRA_FULL_ERROR` is our doing and not the user's; jobs in other processes see it."""
_LIBRARIES = tuple(str(Path(str(m.__file__)).parent) + os.sep for m in (hydra, omegaconf))


class Reported(Exception):
    """An error that the user has been shown."""


@contextmanager
def hydra_raises() -> Iterator[None]:
    """Have Hydra raise its errors, where by itself it prints them and exits."""
    before = {name: os.environ.get(name) for name in (_HYDRA_SWITCH, _OUR_SWITCH)}
    if before[_HYDRA_SWITCH] != "1":
        os.environ.update({_HYDRA_SWITCH: "1", _OUR_SWITCH: "1"})
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextmanager
def leaves_on_error(cfg: DictConfig) -> Iterator[None]:
    """Report what is raised within and leave the process with code 1."""
    try:
        yield
    except Exception as error:
        report(error, [str(override) for override in cfg.hydra.overrides.task])
        raise SystemExit(1) from None


def report(error: BaseException, overrides: Sequence[str], who: str = "hookexp") -> str:
    """Print an error to stderr: one message for a mistake, the traceback for a bug.

    Returns the error in one line.
    """
    mistake = _mistake(error, overrides)
    sys.stdout.flush()
    if _wants_traceback() or mistake is None:
        print(_traceback(error, whole=_wants_traceback()), end="", file=sys.stderr)
    line = str(mistake) if mistake is not None else f"{type(error).__name__}: {error}"
    if mistake is not None or who != "hookexp":
        print(f"{who}: {line}", file=sys.stderr)
    sys.stderr.flush()
    return line


def full_traceback(error: BaseException) -> str:
    return _traceback(error, whole=True)


def _wants_traceback() -> bool:
    return os.environ.get(_HYDRA_SWITCH) == "1" and os.environ.get(_OUR_SWITCH) != "1"


def _mistake(error: BaseException, overrides: Sequence[str]) -> ConfigError | None:
    """The error as a mistake of the user's, with a running Hydra to look names up in."""
    from hookexp.compose.translate import in_its_file, translate

    if GlobalHydra.instance().is_initialized():
        return in_its_file(translate(error, overrides), overrides)
    with with_hydra():
        return translate(error, overrides)


def _traceback(error: BaseException, whole: bool) -> str:
    """The traceback with the notes of hooks, and without the frames of Hydra unless `whole`."""
    summary = traceback.TracebackException.from_exception(error)
    link: traceback.TracebackException | None = summary
    while link is not None and not whole:
        link.stack[:] = [f for f in link.stack if not f.filename.startswith(_LIBRARIES)]
        link = link.__cause__ or link.__context__
    text = "".join(summary.format())
    if sys.version_info < (3, 11):  # Later versions print notes themselves.
        text += "".join(f"{note}\n" for note in getattr(error, "__notes__", []))
    return text

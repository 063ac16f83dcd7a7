"""The errors that a user can mend: shown as one message, without a traceback."""

from __future__ import annotations


class ConfigError(ValueError):
    """Something in the config, the command line or the user's files has to change.

    The message says where (the config path, such as `hooks.checkpoint.interval`), what was given,
    what is allowed and what to change. The entry point prints it alone and exits with code 1.
    """


class NotFiniteError(ConfigError, FloatingPointError):
    """A loss or a gradient that is no number; the message says what to try."""


def kind_of(value: object) -> str:
    """What a value is, with its article: `a dict`, `an int`."""
    name = type(value).__name__
    return f"{'an' if name[:1] in 'AEIOaeio' else 'a'} {name}"


def add_note(error: BaseException, note: str) -> None:
    """Attach a line to an error's traceback; Python 3.10 keeps it for our own error report."""
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:
        error.__notes__ = [*getattr(error, "__notes__", []), note]  # type: ignore[attr-defined]

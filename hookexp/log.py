"""Messages of a run: short ones for the terminal, complete ones for the log file.

The config group `hydra/job_logging` puts these to work. A record that is logged with
`extra=FILE_ONLY` goes to the log file alone: a live display uses it for the lines that it
replaces on the screen.
"""

from __future__ import annotations

import logging
import sys
import time
from contextlib import suppress

FILE_ONLY = {"file_only": True}
"""Pass as `extra` to a logging call whose message the terminal shows in another form."""


class ConsoleHandler(logging.Handler):
    """Prints messages to whatever `sys.stdout` is at that moment.

    `logging.StreamHandler` keeps the stream it was made with, and so writes through a live display
    that has put its own in place, and past the capture of a test.
    """

    def __init__(self, level: int | str = logging.NOTSET) -> None:
        super().__init__(level)
        self.setFormatter(ConsoleFormatter())
        self.addFilter(lambda record: not getattr(record, "file_only", False))

    def emit(self, record: logging.LogRecord) -> None:
        try:
            print(self.format(record), flush=True)
        except BrokenPipeError:
            # The reader has gone, as in `hookexp | head`. Training goes on, and so does the file.
            self.setLevel(logging.CRITICAL + 1)
        except Exception:
            self.handleError(record)


class LogFile(logging.FileHandler):
    """The log file; where the disk does not take a message, one line says so and the run goes on.

    Python's own handler prints two tracebacks for every message that is lost.
    """

    _has_told = False

    def handleError(self, record: logging.LogRecord) -> None:
        error = sys.exc_info()[1]
        if not isinstance(error, OSError):
            super().handleError(record)
        elif not self._has_told:
            self._has_told = True
            print(
                f"WARNING: {self.baseFilename} takes no more messages ({error.strerror}); the "
                "terminal has them (this is said once)",
                flush=True,
            )

    def close(self) -> None:
        with suppress(OSError):
            super().close()


class ConsoleFormatter(logging.Formatter):
    """The plain message; from WARNING on with the level's name before it."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        message = record.message.rstrip("\n")
        return message if record.levelno < logging.WARNING else f"{record.levelname}: {message}"


class FileFormatter(logging.Formatter):
    """Time, level and origin before each message: `2026-01-31 12:00:00,123 INFO hookexp: …`."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s: %(message)s")
        self._second = (-1, "")
        """The last second of which there was a message, and its date and time as text."""

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """As Python's own, which goes through the calendar for each message and not each second."""
        second = int(record.created)
        if second != self._second[0]:
            self._second = second, time.strftime(self.default_time_format, time.localtime(second))
        return f"{self._second[1]},{int(record.msecs):03d}"

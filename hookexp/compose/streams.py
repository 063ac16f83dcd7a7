"""What is said to nobody stops nothing: a closed stream, a reader that leaves, a full disk."""

from __future__ import annotations

import io
import os
import sys


def make_sturdy() -> None:
    """Have whatever prints go on where a stream takes no more, as after `>&-` or `| head`."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w"))  # noqa: PTH123, SIM115
        elif type(stream) is io.TextIOWrapper and stream is getattr(sys, f"__{name}__"):
            sturdy = _sturdy(stream)  # Not where a test or a notebook has put one of its own.
            setattr(sys, name, sturdy)
            setattr(sys, f"__{name}__", sturdy)


def _sturdy(stream: io.TextIOWrapper) -> SturdyStream:
    names = ("encoding", "errors", "line_buffering", "write_through")
    settings = {name: getattr(stream, name) for name in names}
    return SturdyStream(stream.detach(), **settings)


class SturdyStream(io.TextIOWrapper):
    """Text for a file that may take no more of it: one line on stderr says so, the rest is lost."""

    def write(self, text: str) -> int:
        try:
            return super().write(text)
        except OSError as error:
            self._give_up(error)
            return len(text)

    def flush(self) -> None:
        try:
            super().flush()
        except OSError as error:
            self._give_up(error)

    def _give_up(self, error: OSError) -> None:
        # What was written before and has not arrived goes there too.
        os.dup2(os.open(os.devnull, os.O_WRONLY), self.fileno())
        is_gone = isinstance(error, BrokenPipeError)  # The reader wanted no more: `--help | head`.
        if self is not sys.stderr and not is_gone:
            print(
                f"hookexp: stdout takes no more ({error.strerror}); a run goes on, and its log "
                "file has every message",
                file=sys.stderr,
                flush=True,
            )

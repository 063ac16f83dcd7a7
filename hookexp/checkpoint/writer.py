"""`CheckpointWriter`: checkpoints go to the disk on another thread, one at a time.

The training thread pays for a copy in host memory and no more. A failure is kept and raised on the
training thread, at the loop's next safe point; nobody leaves the process before a write is done.
"""

from __future__ import annotations

import errno
import logging
import shutil
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from hookexp.checkpoint.host_copy import HostCopy, num_bytes
from hookexp.checkpoint.store import CheckpointStore
from hookexp.errors import ConfigError

logger = logging.getLogger("hookexp")
_ROOM_FOR_TEXT = 1 << 18
_WAYS_OUT = {
    errno.ENOSPC: "Make room",
    errno.EDQUOT: "Make room in your quota",
    errno.EFBIG: "Raise the limit of file sizes (ulimit -f)",
    errno.EROFS: "Make the folder writable",
    errno.EACCES: "Make the folder writable",
    errno.EPERM: "Make the folder writable",
}


class CheckpointWriter:
    """Writes into a store, in the order of the calls, at most one checkpoint in flight.

    Args:
        store: where the checkpoints go.
        flush: called on the writing thread before a checkpoint gets its name: what it counts,
            such as rows of a log, has to be on the disk before it.
    """

    def __init__(self, store: CheckpointStore, flush: Callable[[], None]) -> None:
        self.store = store
        self._flush = flush
        self._host_copy = HostCopy()
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="checkpoint")
        self._in_flight: Future[Path] | None = None
        self._name = ""
        self._obsolete: list[str] = []
        """What goes with the next checkpoint that is written, also after one that was not."""
        self.goes_on_after_failure = False
        """Whether a checkpoint that cannot be written ends the run or is warned about."""

    def save(
        self,
        checkpoint: dict[str, Any],
        name: str,
        obsolete: Iterable[str] = (),
        points_last: bool = True,
        in_background: bool = True,
    ) -> None:
        """Save a checkpoint; waits first for the one before it.

        Raises:
            ConfigError: if the save before it failed, or there is no room for this one.
        """
        self.wait()
        self._name = name
        self._obsolete += obsolete
        try:
            self._require_room(num_bytes(checkpoint))
        except OSError as error:
            self._fail(error)
            return
        ours = self._host_copy.copy(checkpoint) if in_background else checkpoint
        # Freed here, the caller's tensors would hand Python's lock to the thread that writes.
        self._in_flight = self._thread.submit(self._write, ours, name, points_last, checkpoint)
        if not in_background:
            self.wait()

    def raise_failure(self) -> None:
        """Raise what a finished write failed with; does not wait for one in flight."""
        if self._in_flight is not None and self._in_flight.done():
            self.wait()

    def wait(self) -> None:
        """Wait for the write in flight, and raise what it failed with.

        Raises:
            ConfigError: says why, and which checkpoint is the last good one.
        """
        future = self._in_flight
        if future is None:
            return
        try:
            future.result()
        except OSError as error:
            self._fail(error)
        finally:
            # Torch raises out of a signal handler that a worker has died: the write goes on then.
            if future.done():
                self._in_flight = None

    def _fail(self, error: OSError) -> None:
        reason = error.strerror or str(error)
        message = (
            f"checkpoint {self._name} could not be written into {self.store.folder}: "
            f"{reason[:1].lower()}{reason[1:]}. {self._last_good()}. "
        )
        if not self.goes_on_after_failure:
            what = _WAYS_OUT.get(error.errno or 0, "Mend that")
            raise ConfigError(
                f"{message}{what} and continue with resume=auto, or train on without it: "
                "hooks.checkpoint.on_write_error=go_on"
            ) from error
        logger.warning("%sTraining goes on", message)

    def _last_good(self) -> str:
        try:
            good = self.store.newest()
        except (ConfigError, OSError) as error:
            return str(error)
        return f"The last good one is {good.name}" if good else "There is none before it"

    def _write(
        self, checkpoint: dict[str, Any], name: str, points_last: bool, original: dict[str, Any]
    ) -> Path:
        """Write a checkpoint; `original` is what it is a copy of, and only let go of here."""
        self._flush()
        path = self.store.save(checkpoint, name, tuple(self._obsolete), points_last)
        self._obsolete.clear()
        return path

    def _require_room(self, needed: int) -> None:
        self.store.folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(self.store.folder).free
        needed += _ROOM_FOR_TEXT
        if free < needed:
            raise OSError(
                errno.ENOSPC, f"it takes {_in_mib(needed)} and {_in_mib(free)} of the disk are free"
            )


def _in_mib(size: int) -> str:
    return f"{size / 2**20:.{0 if size >= 10 << 20 else 1}f} MiB"

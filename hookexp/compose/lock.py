"""One process to a folder: a lock that dies with its owner, however that one dies."""

from __future__ import annotations

import errno
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from hookexp.compose.folders import FolderInUse, unwritable

try:
    import fcntl
except ImportError:  # Windows has no such locks; there the folder is merely claimed.
    fcntl = None  # type: ignore[assignment]

logger = logging.getLogger("hookexp")
_LOCK_FILE = ".lock"
_held: dict[tuple[int, Path], int] = {}
"""Descriptors by process, since one that is forked has no part in a lock, and folder."""


def lock(folder: Path) -> None:
    """Keep other processes out of a folder until this one ends or `unlock`s it.

    `lockf`, not `flock`: a forked loader's worker must not inherit the lock and outlive its owner
    with it.

    Raises:
        FolderInUse: if another process has the folder; it says which.
        ConfigError: if nothing can be written.
    """
    path = folder.resolve()
    if fcntl is None or (os.getpid(), path) in _held:
        return
    try:
        descriptor = os.open(path / _LOCK_FILE, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise unwritable("hydra.run.dir", folder, error) from error
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno not in (errno.EACCES, errno.EAGAIN):
            # A network file system, say. That nobody could run there would help nobody.
            logger.warning(
                "%s: its file system has no locks (%s), so nothing keeps a second run out of this "
                "folder",
                *(folder, (error.strerror or str(error)).lower()),
            )
            _held[os.getpid(), path] = descriptor
            return
        owner = os.pread(descriptor, 32, 0).decode(errors="replace").strip() or "unknown"
        os.close(descriptor)
        raise FolderInUse(
            f"{folder}: is in use by another run (process {owner}); wait for its end, or choose "
            "another folder with hydra.run.dir=FOLDER. The lock ends with that process, however it "
            f"ends: deleting {_LOCK_FILE} is never needed, and would let two runs write here"
        ) from None
    with suppress(OSError):  # On a full disk the folder is locked all the same.
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, f"{os.getpid()}\n".encode(), 0)
    _held[os.getpid(), path] = descriptor


def unlock(folder: Path) -> None:
    """Let other processes in again."""
    descriptor = _held.pop((os.getpid(), folder.resolve()), None)
    if descriptor is not None:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder for as long as a run lasts."""
    lock(folder)
    try:
        yield
    finally:
        unlock(folder)

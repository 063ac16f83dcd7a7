"""Writing a file so that its name only ever stands for all of it, with a checksum on the way."""

from __future__ import annotations

import errno
import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

UNFINISHED = ".tmp"
"""How the name of a file ends that is being written: `.<name>.<process id>.tmp`."""

_SIZE_OF_BLOCK = 1 << 22
"""Bytes that are hashed at once: of smaller blocks each takes Python's lock from the training."""


def write_whole(
    path: Path, write: Any, before_rename: Callable[[str, int], None] = lambda digest, size: None
) -> tuple[str, int]:
    """Write a file so that its name only ever stands for all of it; returns sha256 and size.

    The temporary name is in the same folder: a rename across file systems would be a copy.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with temporary.open("w+b") as raw, ThreadPoolExecutor(max_workers=1) as thread:
            file = _HashedFile(raw, thread)
            try:
                write(file)
            except RuntimeError as error:
                # torch.save hides what the disk said behind an error of its own zip writer.
                raise (file.error or error) from error
            hashing = file.hash_behind()
            os.fsync(raw.fileno())
            digest = hashing.result()
        before_rename(digest, file.size)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)
    return digest, file.size


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _HashedFile(io.RawIOBase):
    """Passes bytes on to a file, which `thread` reads behind and hashes meanwhile.

    It hashes what the system has taken, not the memory that came from: that may change, or be
    given back, once `write` returns. A file that was just written is read from memory.
    """

    def __init__(self, raw: BinaryIO, thread: ThreadPoolExecutor) -> None:
        self._raw = raw
        self._thread = thread
        self._sha256 = hashlib.sha256()
        self._hashed = self._handed_on = 0
        self.size = 0
        self.error: OSError | None = None
        """What the file refused a write with."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        length = memoryview(data).nbytes
        try:
            self._raw.write(data)
            self.size += length
            if self.size - self._handed_on >= _SIZE_OF_BLOCK:
                self.hash_behind()
        except OSError as error:
            self.error = error
            raise
        return length

    def flush(self) -> None:
        self._raw.flush()

    def hash_behind(self) -> Future[str]:
        """Have all that was written so far hashed; the result is the checksum of that."""
        self._raw.flush()
        self._handed_on = self.size
        return self._thread.submit(self._hash, self.size)

    def _hash(self, end: int) -> str:
        while self._hashed < end:
            block = os.pread(self._raw.fileno(), _SIZE_OF_BLOCK, self._hashed)
            if not block:
                raise OSError(errno.EIO, f"{self._hashed} of {end} bytes can be read again")
            self._sha256.update(block)
            self._hashed += len(block)
        return self._sha256.hexdigest()


def sha256_of(path: Path) -> str:
    """The checksum of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_SIZE_OF_BLOCK):
            digest.update(block)
    return digest.hexdigest()

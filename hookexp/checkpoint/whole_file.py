"""Writing a file so that its name only ever stands for all of it, with a checksum on the way."""

from __future__ import annotations

import hashlib
import io
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

UNFINISHED = ".tmp"
"""How the name of a file ends that is being written: `.<name>.<process id>.tmp`."""

_SIZE_OF_BLOCK = 1 << 20
_WORTH_A_THREAD = 1 << 18
"""Bytes from which on it pays to hash them on another thread."""


def write_whole(
    path: Path, write: Any, before_rename: Callable[[str, int], None] = lambda digest, size: None
) -> tuple[str, int]:
    """Write a file so that its name only ever stands for all of it; returns sha256 and size.

    The temporary name is in the same folder: a rename across file systems would be a copy.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{UNFINISHED}")
    try:
        with temporary.open("wb") as raw, ThreadPoolExecutor(max_workers=1) as thread:
            hashing = _HashingWriter(raw, thread)
            try:
                write(hashing)
            except RuntimeError as error:
                # torch.save hides what the disk said behind an error of its own zip writer.
                raise (hashing.error or error) from error
            raw.flush()
            os.fsync(raw.fileno())
        before_rename(hashing.hexdigest(), hashing.size)
        temporary.replace(path)
    except BaseException:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)
    return hashing.hexdigest(), hashing.size


def fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


class _HashingWriter(io.RawIOBase):
    """Passes bytes on to a file and hashes them, so that the checksum costs no second reading.

    Large pieces are hashed by `thread` while they are written: neither holds Python's lock.
    """

    def __init__(self, raw: BinaryIO, thread: ThreadPoolExecutor) -> None:
        self._raw = raw
        self._thread = thread
        self._sha256 = hashlib.sha256()
        self.size = 0
        self.error: OSError | None = None
        """What the file refused a write with."""

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        length = len(memoryview(data).cast("B"))
        is_large = length >= _WORTH_A_THREAD
        hashed = self._thread.submit(self._sha256.update, data) if is_large else None
        try:
            self._raw.write(data)
        except OSError as error:
            self.error = error
            raise
        finally:
            if hashed is not None:
                hashed.result()  # The caller's memory may change once this returns.
        if hashed is None:
            self._sha256.update(data)
        self.size += length
        return length

    def flush(self) -> None:
        self._raw.flush()

    def hexdigest(self) -> str:
        return self._sha256.hexdigest()


def sha256_of(path: Path) -> str:
    """The checksum of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_SIZE_OF_BLOCK):
            digest.update(block)
    return digest.hexdigest()

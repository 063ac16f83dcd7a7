"""`AppendFile`: a log on the disk that a killed run leaves whole and a resumed one continues."""

from __future__ import annotations

import os
from io import FileIO
from pathlib import Path


class AppendFile:
    """Records at the end of a file, each in one unbuffered write: a killed run loses none.

    Args:
        path: the file; what it holds already stays.
    """

    def __init__(self, path: Path) -> None:
        self._file = FileIO(path, "a")

    def append(self, record: bytes) -> None:
        """Write a record; one that fits only in part (a full disk) is taken back.

        Raises:
            OSError: if there was no room for it, or the file was deleted.
        """
        if os.fstat(self._file.fileno()).st_nlink == 0:
            # The system would take it, into a file that nobody can find.
            raise FileNotFoundError(f"{self._file.name!r} was deleted")
        num_written = self._file.write(record)
        if num_written != len(record):
            self._file.truncate(self.position - num_written)
            raise OSError(f"no room for a record in {self._file.name!r}")

    @property
    def position(self) -> int:
        """Bytes in the file."""
        return self._file.seek(0, os.SEEK_END)

    def cut(self, position: int) -> None:
        """Drop the records after a position: a resumed run writes them again.

        Raises:
            ValueError: if the file is shorter, and so not the one that position came from.
        """
        size = self.position
        if size < position:
            raise ValueError(f"{self._file.name!r} has {size} bytes, cannot be cut at {position}")
        self._file.truncate(position)

    def flush(self) -> None:
        """Return when all records are on the disk."""
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()

"""`CheckpointStore`: how a checkpoint gets onto the disk, and back, whole.

The order of a save, so that a kill at any instruction leaves a folder that resumes:

    write to a temporary name in the same folder, hashing on the way; fsync
    rename to the final name; fsync the folder
    the same for `last_checkpoint`, which lists every kept file with its checksum
    only then delete what is obsolete

`last_checkpoint` is text. Its first line is the newest file's name (empty if only files that do
not continue a run are kept), each further line `sha256 size name` of a kept file.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hookexp.checkpoint.reading import is_archive, is_whole_archive, iteration_in
from hookexp.checkpoint.whole_file import UNFINISHED, fsync_folder, sha256_of, write_whole
from hookexp.errors import ConfigError

logger = logging.getLogger("hookexp")
POINTER = "last_checkpoint"
_OBSOLETE = ".obsolete"
_BEST = "best_"
_NOT_TO_CONTINUE = (_BEST, "exception_")
_SUFFIX = ".pth"


@dataclass(frozen=True)
class KeptFile:
    """A line of `last_checkpoint`."""

    sha256: str
    size: int
    name: str


def best_stem(metric: str) -> str:
    """How names of the best checkpoints by a metric begin; `_epoch_3.pth` or `_iter_90.pth` follow.

    A metric's name may hold what a file's cannot.
    """
    return _BEST + re.sub(r"[^A-Za-z0-9@.+-]", "_", metric)


class CheckpointStore:
    """The checkpoints in one folder. Only files that this folder lists are ever deleted."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._is_tidy = False

    def save(
        self,
        checkpoint: dict[str, Any],
        name: str,
        obsolete: Iterable[str] = (),
        points_last: bool = True,
    ) -> Path:
        """Write a checkpoint under `name` in the folder, then delete the obsolete ones.

        Raises:
            OSError: if the disk does not take it; the files that were there are still whole.
        """
        self._tidy()
        newest, kept = self._read_pointer()
        path = self.folder / name

        def announce(digest: str, size: int) -> None:
            # A listed name is about to stand for other content: until the new list is written,
            # either content is one that is listed, so a kill in between costs nothing.
            if any(k.name == name for k in kept):
                self._write_pointer(newest, [*kept, KeptFile(digest, size, name)])

        digest, size = write_whole(path, lambda file: torch.save(checkpoint, file), announce)
        gone = (set(obsolete) - {name}) & {k.name for k in kept}
        kept = [k for k in kept if k.name not in {name, *gone}]
        kept.append(KeptFile(digest, size, name))
        try:
            if gone:
                # Once the list has forgotten them nobody else would know that they may go.
                (self.folder / _OBSOLETE).write_text("".join(f"{old}\n" for old in sorted(gone)))
            self._write_pointer(name if points_last else newest, kept)
        except OSError:
            # A file that no list has would stay for good, on a disk that may be full.
            if name not in {k.name for k in self._read_pointer()[1]}:
                path.unlink(missing_ok=True)
            raise
        if gone:
            self._delete_obsolete(kept)
        return path

    def save_by_checksum(self, checkpoint: dict[str, Any], stem: str) -> Path:
        """Write `<stem>-<first 8 of sha256>.pth`; such a file is never listed nor deleted."""
        draft = self.folder / f".{stem}.draft"
        digest, _ = write_whole(draft, lambda file: torch.save(checkpoint, file))
        path = self.folder / f"{stem}-{digest[:8]}.pth"
        draft.replace(path)
        fsync_folder(self.folder)
        return path

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole, None if none was ever saved.

        Raises:
            ConfigError: if there are checkpoints and none is whole.
        """
        newest, kept = self._read_pointer()
        names = [k.name for k in reversed(kept)]
        resumable = [newest] if newest in names else []
        resumable += [n for n in names if n != newest and not n.startswith(_NOT_TO_CONTINUE)]
        for name in resumable:
            if self.is_whole(name):
                return self.folder / name
        unlisted = self._unlisted(names)
        for iteration, path in unlisted:
            if iteration >= 0 and is_whole_archive(path):
                logger.warning(
                    "%s lists no checkpoint that is whole; %s is the furthest one beside it that "
                    "is so by its own checksums, and is taken",
                    self.folder / POINTER,
                    path.name,
                )
                return path
        damaged = [*resumable, *(path.name for _, path in unlisted)]
        if damaged:
            raise ConfigError(
                f"no checkpoint in {self.folder} is whole (checked: {', '.join(damaged)}); "
                "choose another with resume=PATH, or start anew in another folder"
            )
        return None

    def _unlisted(self, listed: list[str]) -> list[tuple[int, Path]]:
        """Checkpoints that are not listed, with their iterations, the furthest first.

        They are there if the list was lost, as when only the files were copied. Damaged ones are at
        iteration -1.
        """
        if not self.folder.is_dir():
            return []
        files = [p for p in self.folder.iterdir() if p.is_file() and p.name not in listed]
        found = [(iteration_in(path), path) for path in files if _is_checkpoint(path)]
        return sorted(((i, path) for i, path in found if i is not None), reverse=True)

    def is_whole(self, name: str) -> bool:
        """Whether a listed file has the size and checksum that it was written with."""
        _, kept = self._read_pointer()
        path = self.folder / name
        if not path.is_file():
            return False
        size = path.stat().st_size
        listed = {k.sha256 for k in kept if k.name == name and k.size == size}
        return bool(listed) and sha256_of(path) in listed

    def refuse_damaged(self, path: Path) -> None:
        """Look at a file that was named, and not found by `newest`.

        Raises:
            ConfigError: if this folder lists it with another checksum.
        """
        try:
            _, kept = self._read_pointer()
        except ConfigError:
            kept = []  # What is beside a file of another program need not be a list of ours.
        if any(k.name == path.name for k in kept):
            if path.is_file() and not self.is_whole(path.name):
                raise ConfigError(
                    f"checkpoint {path}: is damaged, it is not what {POINTER} beside it says was "
                    "written; choose another (one that was changed on purpose needs another name)"
                )
        elif is_archive(path) and not is_whole_archive(path):
            logger.warning(
                "checkpoint %s: parts of it have other checksums than it says itself; it is "
                "damaged, unless its program left them out",
                path,
            )

    def _tidy(self) -> None:
        """Make the folder, and remove what killed processes were writing into it."""
        if self._is_tidy:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(f".*{UNFINISHED}"):
            if path.name.split(".")[-2] != str(os.getpid()):
                path.unlink(missing_ok=True)
        self._delete_obsolete(self._read_pointer()[1])
        self._is_tidy = True

    def _delete_obsolete(self, kept: list[KeptFile]) -> None:
        """Delete what a save, perhaps one of a killed process, has noted as obsolete."""
        note = self.folder / _OBSOLETE
        if not note.is_file():
            return
        lines = note.read_text(encoding="utf-8", errors="replace").splitlines(keepends=True)
        names = {line.removesuffix("\n") for line in lines if line.endswith("\n")}
        for name in names - {k.name for k in kept}:
            if Path(name).name == name:
                (self.folder / name).unlink(missing_ok=True)
        note.unlink()

    def _read_pointer(self) -> tuple[str, list[KeptFile]]:
        pointer = self.folder / POINTER
        if not pointer.is_file():
            return "", []
        newest, *lines = pointer.read_text(encoding="utf-8", errors="replace").splitlines() or [""]
        kept = []
        for line in lines:
            digest, _, rest = line.partition(" ")
            size, _, name = rest.partition(" ")
            # A name with a folder in it would have files elsewhere read, and deleted.
            if not size.isdecimal() or Path(name).name != name or not name:
                raise ConfigError(
                    f"{pointer}: {line[:120]!r} is not 'sha256 size name' of a file beside it; "
                    "name the checkpoint to continue from yourself: resume=PATH"
                )
            kept.append(KeptFile(digest, int(size), name))
        return newest, kept

    def _write_pointer(self, newest: str, kept: list[KeptFile]) -> None:
        lines = [newest, *(f"{k.sha256} {k.size} {k.name}" for k in kept)]
        text = "\n".join(lines) + "\n"
        write_whole(self.folder / POINTER, lambda file: file.write(text.encode()))


def _is_checkpoint(path: Path) -> bool:
    """Whether a file's name says that a run continues from it."""
    hidden_or_other = (".", *_NOT_TO_CONTINUE)
    return path.suffix == _SUFFIX and not path.name.startswith(hidden_or_other)

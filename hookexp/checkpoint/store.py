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

import hashlib
import io
import logging
import os
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hookexp.errors import ConfigError

logger = logging.getLogger("hookexp")
POINTER = "last_checkpoint"
_SIZE_OF_BLOCK = 1 << 20
_WORTH_A_THREAD = 1 << 18
"""Bytes from which on it pays to hash them on another thread."""
_UNFINISHED = ".tmp"
_OBSOLETE = ".obsolete"
_NOT_TO_CONTINUE = ("best_", "exception_")
_SUFFIX = ".pth"
_ARCHIVE = b"PK\x03\x04"
"""The first bytes of what torch.save writes; before torch 1.6 it wrote pickles."""


@dataclass(frozen=True)
class KeptFile:
    """A line of `last_checkpoint`."""

    sha256: str
    size: int
    name: str


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

        digest, size = _write_whole(path, lambda file: torch.save(checkpoint, file), announce)
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
        digest, _ = _write_whole(draft, lambda file: torch.save(checkpoint, file))
        path = self.folder / f"{stem}-{digest[:8]}.pth"
        draft.replace(path)
        _fsync_folder(self.folder)
        return path

    def newest(self) -> Path | None:
        """The newest checkpoint that is whole, None if none was ever saved.

        Raises:
            ConfigError: if there are checkpoints and none is whole.
        """
        newest, kept = self._read_pointer()
        if not kept:
            return self._furthest_unlisted()
        names = [k.name for k in reversed(kept)]
        resumable = [newest] if newest in names else []
        resumable += [n for n in names if n != newest and not n.startswith(_NOT_TO_CONTINUE)]
        for name in resumable:
            if self.is_whole(name):
                return self.folder / name
        if resumable:
            raise self._none_is_whole(resumable)
        return None

    def _furthest_unlisted(self) -> Path | None:
        """Where the list is lost, as when only the checkpoints were copied: the one furthest on.

        It is verified by the checksums that are in the file itself, weaker than those of the list.
        """
        if not self.folder.is_dir():
            return None
        files = [p for p in sorted(self.folder.iterdir()) if p.is_file() and _is_checkpoint(p)]
        iterations = [(_iteration_in(path), path) for path in files]
        candidates = sorted(((i, path) for i, path in iterations if i is not None), reverse=True)
        for iteration, path in candidates:
            if iteration >= 0 and _is_whole_archive(path):
                logger.warning(
                    "%s lists no checkpoint; %s is the furthest one beside it that is whole by its "
                    "own checksums, and is taken",
                    self.folder / POINTER,
                    path.name,
                )
                return path
        if candidates:
            raise self._none_is_whole([path.name for _, path in candidates])
        return None

    def _none_is_whole(self, names: list[str]) -> ConfigError:
        return ConfigError(
            f"no checkpoint in {self.folder} is whole (checked: {', '.join(names)}); "
            "choose another with resume=PATH, or start anew in another folder"
        )

    def is_whole(self, name: str) -> bool:
        """Whether a listed file has the size and checksum that it was written with."""
        _, kept = self._read_pointer()
        path = self.folder / name
        if not path.is_file():
            return False
        size = path.stat().st_size
        listed = {k.sha256 for k in kept if k.name == name and k.size == size}
        return bool(listed) and sha256_of(path) in listed

    def _tidy(self) -> None:
        """Make the folder, and remove what killed processes were writing into it."""
        if self._is_tidy:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        for path in self.folder.glob(f".*{_UNFINISHED}"):
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
        _write_whole(self.folder / POINTER, lambda file: file.write(text.encode()))


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours; tensors and plain types only, so nothing in it is ever executed.

    Raises:
        ConfigError: if it is no checkpoint, is torn, or holds anything else.
    """
    checkpoint = read_file(path)
    if not isinstance(checkpoint, dict):
        raise ConfigError(f"checkpoint {path}: holds a {type(checkpoint).__name__}, not a dict")
    return checkpoint


def _is_checkpoint(path: Path) -> bool:
    """Whether a file's name says that a run continues from it."""
    hidden_or_other = (".", *_NOT_TO_CONTINUE)
    return path.suffix == _SUFFIX and not path.name.startswith(hidden_or_other)


def _iteration_in(path: Path) -> int | None:
    """How far the run of a checkpoint was; None for weights alone, -1 for what cannot be read."""
    try:
        checkpoint = read_file(path, mmap=True)
    except ConfigError:
        return -1
    loop = checkpoint.get("loop") if isinstance(checkpoint, dict) else None
    return int(loop["iter"]) if isinstance(loop, dict) and "iter" in loop else None


def _is_whole_archive(path: Path) -> bool:
    """Whether each part of a file has the checksum that the archive's directory has of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, OSError, zlib.error):
        return False


def read_file(path: Path, trusted: bool = False, way_out: str = "", mmap: bool = False) -> Any:
    """What `torch.save` wrote, on the CPU.

    Args:
        trusted: whether code in the file may run, since the user knows where it comes from.
        way_out: what a user can do about a file that needs it, for the message.
        mmap: leave the tensors on the disk until somebody looks at them.

    Raises:
        ConfigError: if it cannot be read, or needs to run code and is not trusted.
    """
    try:
        with path.open("rb") as file:
            begin = file.read(len(_ARCHIVE))
        if begin and begin != _ARCHIVE and not begin.startswith(pickle.PROTO):
            raise ConfigError(
                f"checkpoint {path}: cannot be read (it does not begin as what torch.save writes); "
                "it is torn or no checkpoint"
            )
        # Said explicitly: TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD would turn over torch's default.
        return torch.load(path, map_location="cpu", weights_only=not trusted, mmap=mmap)
    except FileNotFoundError:
        raise ConfigError(f"checkpoint {path}: there is no such file") from None
    except IsADirectoryError:
        raise ConfigError(f"checkpoint {path}: is a folder, a file is needed") from None
    except pickle.UnpicklingError as error:
        raise ConfigError(
            f"checkpoint {path}: holds more than tensors and plain types and is not loaded, "
            f"since that could run code ({_what_torch_refused(error)}){way_out}"
        ) from error
    except ConfigError:
        raise
    except Exception as error:  # What is no checkpoint fails in torch in many ways.
        why = f"{type(error).__name__}); it is torn or no checkpoint"
        if trusted and isinstance(error, (ImportError, AttributeError)):
            why = f"{error}); it needs the program that wrote it to be installed"
        raise ConfigError(f"checkpoint {path}: cannot be read ({why}") from error


def _what_torch_refused(error: pickle.UnpicklingError) -> str:
    """The name of what a file wanted to call, out of torch's page of advice about it."""
    text = str(error)
    named = re.search(r"GLOBAL (\S+) was not an allowed global|[Uu]nsupported \w+ (\S+)", text)
    name = next((n for n in named.groups() if n), "") if named else ""
    return name or text.splitlines()[0]


def sha256_of(path: Path) -> str:
    """The checksum of a file's content, in hexadecimal."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(_SIZE_OF_BLOCK):
            digest.update(block)
    return digest.hexdigest()


def _write_whole(
    path: Path, write: Any, before_rename: Callable[[str, int], None] = lambda digest, size: None
) -> tuple[str, int]:
    """Write a file so that its name only ever stands for all of it; returns sha256 and size.

    The temporary name is in the same folder: a rename across file systems would be a copy.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_UNFINISHED}")
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
    _fsync_folder(path.parent)
    return hashing.hexdigest(), hashing.size


def _fsync_folder(folder: Path) -> None:
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

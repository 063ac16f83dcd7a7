"""Reading a checkpoint: of ours or of others, whole or damaged, and never running what is in it."""

from __future__ import annotations

import pickle
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import torch

from hookexp.errors import ConfigError, kind_of

_ARCHIVE = b"PK\x03\x04"
"""The first bytes of what torch.save writes; before torch 1.6 it wrote pickles."""


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours; tensors and plain types only, so nothing in it is ever executed.

    Raises:
        ConfigError: if it is no checkpoint, is torn, or holds anything else.
    """
    checkpoint = read_file(path)
    if not isinstance(checkpoint, dict):
        raise ConfigError(f"checkpoint {path}: holds {kind_of(checkpoint)}, not a dict")
    return checkpoint


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
        begin = _begin_of(path)
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


def _begin_of(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(len(_ARCHIVE))


def _what_torch_refused(error: pickle.UnpicklingError) -> str:
    """The name of what a file wanted to call, out of torch's page of advice about it."""
    text = str(error)
    named = re.search(r"GLOBAL (\S+) was not an allowed global|[Uu]nsupported \w+ (\S+)", text)
    name = next((n for n in named.groups() if n), "") if named else ""
    return name or text.splitlines()[0]


def iteration_in(path: Path) -> int | None:
    """How far the run of a checkpoint was; None for a file that no run continues from.

    -1 for one that is damaged.
    """
    try:
        checkpoint = read_file(path, mmap=True)
    except ConfigError:
        try:
            begin = _begin_of(path)
        except OSError:
            return -1
        could_be_ours = begin == _ARCHIVE or not begin.strip(b"\0")
        return -1 if could_be_ours and not is_whole_archive(path) else None
    loop = checkpoint.get("loop") if isinstance(checkpoint, dict) else None
    iteration = loop.get("iter") if isinstance(loop, dict) else None
    return iteration if isinstance(iteration, int) else None


def is_archive(path: Path) -> bool:
    """Whether a file begins as those that torch writes now."""
    return path.is_file() and _begin_of(path) == _ARCHIVE


def is_whole_archive(path: Path) -> bool:
    """Whether each part of a file has the checksum that the archive's directory has of it."""
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except (zipfile.BadZipFile, RuntimeError, OSError, zlib.error):
        return False

"""Characters of the sources of Python's standard library: real text that is on every machine."""

from __future__ import annotations

import os
import sysconfig
import zlib
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

ALPHABET = "\n" + "".join(chr(code) for code in range(ord(" "), ord("~") + 1))
"""The characters with an id of their own: newline is 0, then printable ASCII in its order."""

UNKNOWN = len(ALPHABET)
"""The id of every other character."""

VOCAB_SIZE = len(ALPHABET) + 1
"""97 on every machine, so a model's `vocab_size` does not depend on the files found."""

SHARES = {"train": (0.0, 0.9), "val": (0.9, 0.95), "test": (0.95, 1.0)}
"""From where to where in the text each split reaches."""

_UNKNOWN_GLYPH = "\N{REPLACEMENT CHARACTER}"
_SKIPPED_FOLDERS = frozenset(
    {"site-packages", "dist-packages", "test", "tests", "idlelib", "encodings", "pydoc_data"}
)
"""Other people's code, tests, and what is no program: character tables, manual pages."""


class StdlibText(Dataset[tuple[Tensor, Tensor]]):
    """Windows of `block_size` characters, each with the same window one character later.

    The files come in the order of a checksum of their path, so that a cap on the characters takes
    a fair sample and every split has something of everything; then the text is cut 90/5/5. The
    text depends on the Python that runs, and on nothing else.

    A window of the train split starts at a random place within its stretch of the text, so no two
    epochs are alike. The windows of the other splits are fixed and spread evenly.

    Args:
        split: "train", "val" or "test".
        block_size: characters per window.
        max_chars: how much of the library to read.
        max_windows: limit on the windows of an evaluation, which sets the time it takes; the train
            split has no limit.

    Raises:
        ValueError: for an unknown split, a Python without sources, or too little text for a window.
    """

    def __init__(
        self,
        split: Literal["train", "val", "test"],
        block_size: int = 128,
        max_chars: int = 4_000_000,
        max_windows: int = 512,
    ) -> None:
        if split not in SHARES:
            raise ValueError(f"StdlibText has no split {split!r}: use one of {', '.join(SHARES)}")
        text = _read_library(Path(sysconfig.get_paths()["stdlib"]), max_chars)
        begin, end = (round(share * len(text)) for share in SHARES[split])
        self.block_size = block_size
        self.text = text[begin:end]
        self.shift_windows = split == "train"
        # The last window leaves room for the largest shift and the target of its last character.
        self.num_windows = len(self.text) // block_size - 1
        self.stride = block_size
        if self.num_windows < 1:
            raise ValueError(
                f"StdlibText: the {split} split has {len(self.text)} characters, too few for a "
                f"window of block_size={block_size}; lower block_size or raise max_chars"
            )
        if not self.shift_windows and self.num_windows > max_windows:
            self.stride = block_size * (self.num_windows // max_windows)
            self.num_windows = max_windows

    def __len__(self) -> int:
        return self.num_windows

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """The window `index` without a shift: input and target, int64 (block_size,)."""
        inputs, targets = self._windows(
            torch.tensor([index * self.stride], device=self.text.device)
        )
        return inputs[0], targets[0]

    def to(self, device: torch.device) -> StdlibText:
        """Keep the text on a device."""
        self.text = self.text.to(device)
        return self

    def get_batch(self, indices: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """The windows of `indices` (batch,), shifted at random in the train split.

        Args:
            indices: (batch,) int64, where the text is.
            generator: the only source of randomness.

        Returns:
            Inputs and targets, int64 (batch, block_size); a target is the input one character on.
        """
        starts = indices * self.stride
        if self.shift_windows:
            starts = starts + torch.randint(
                self.stride, starts.shape, generator=generator, device=starts.device
            )
        return self._windows(starts)

    def _windows(self, starts: Tensor) -> tuple[Tensor, Tensor]:
        positions = starts[:, None] + torch.arange(self.block_size + 1, device=starts.device)
        windows = self.text[positions].long()
        # A copy to a GPU that is not of one piece would make the host wait.
        return windows[:, :-1].contiguous(), windows[:, 1:].contiguous()

    def encode(self, text: str) -> Tensor:
        """Ids, int64 (len(text),)."""
        return _encode(text).long()

    def decode(self, ids: Tensor) -> str:
        """The text of ids (length,); an unknown character is shown as U+FFFD."""
        return "".join((ALPHABET + _UNKNOWN_GLYPH)[i] for i in ids.tolist())


def _encode(text: str) -> Tensor:
    """Ids, uint8 (len(text),)."""
    table = np.full(128, UNKNOWN, dtype=np.uint8)
    table[[ord(char) for char in ALPHABET]] = np.arange(len(ALPHABET))
    codes = np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), dtype="<u4")
    return torch.from_numpy(np.where(codes < 128, table[codes % 128], np.uint8(UNKNOWN)))


@cache
def _read_library(folder: Path, max_chars: int) -> Tensor:
    """The ids of the first `max_chars` characters, uint8; kept, since three splits read it."""
    texts: list[str] = []
    num_chars = 0
    for name in sorted(_source_files(folder), key=lambda name: (zlib.crc32(name.encode()), name)):
        if num_chars >= max_chars:
            break
        texts.append((folder / name).read_text(encoding="utf-8", errors="replace"))
        num_chars += len(texts[-1])
    if num_chars == 0:
        raise ValueError(
            f"StdlibText: no Python sources in {folder}; this Python was installed without them, "
            "use one that has its standard library as .py files or choose other data"
        )
    return _encode("".join(texts)[:max_chars])


def _source_files(folder: Path) -> Iterator[str]:
    """The library's modules, relative to its folder and with forward slashes, in no order."""
    for parent, folders, files in os.walk(folder):
        folders[:] = (name for name in folders if name not in _SKIPPED_FOLDERS)
        relative = Path(parent).relative_to(folder)
        yield from ((relative / name).as_posix() for name in files if name.endswith(".py"))

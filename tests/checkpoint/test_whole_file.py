"""A file is there as a whole or not at all, and its checksum is of what the disk was given."""

from __future__ import annotations

import hashlib
import os

import pytest

from hookexp.checkpoint.whole_file import sha256_of, write_whole

BLOCK = 4096


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr("hookexp.checkpoint.whole_file._SIZE_OF_BLOCK", BLOCK)


@pytest.mark.parametrize(
    "sizes", [(), (1,), (BLOCK,), (1, BLOCK, 1), (3 * BLOCK + 5, 7), (100,) * 200]
)
def test_the_checksum_is_that_of_the_file_whatever_its_pieces(tmp_path, sizes):
    pieces = [bytes([n % 251]) * size for n, size in enumerate(sizes)]
    path = tmp_path / "file"
    digest, size = write_whole(path, lambda file: [file.write(piece) for piece in pieces])
    whole = b"".join(pieces)
    assert path.read_bytes() == whole and size == len(whole)
    assert digest == hashlib.sha256(whole).hexdigest() == sha256_of(path)


def test_memory_that_was_written_may_be_used_again_at_once(tmp_path):
    memory = bytearray(3 * BLOCK)

    def write(file):
        for value in range(20):
            memory[:] = bytes([value]) * len(memory)
            assert file.write(memoryview(memory)) == len(memory)
        memory[:] = bytes(len(memory))

    path = tmp_path / "file"
    digest, _ = write_whole(path, write)
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_the_checksum_is_known_before_the_file_has_its_name(tmp_path):
    path, told = tmp_path / "file", []
    returned = write_whole(
        path, lambda file: file.write(b"x"), lambda *known: told.append((known, path.exists()))
    )
    assert told == [(returned, False)]


def test_a_file_that_cannot_be_read_again_is_no_file(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "pread", lambda descriptor, length, offset: b"")
    with pytest.raises(OSError, match="0 of 4097 bytes can be read again"):
        write_whole(tmp_path / "file", lambda file: file.write(bytes(BLOCK + 1)))
    assert list(tmp_path.iterdir()) == []

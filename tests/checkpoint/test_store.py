"""Checkpoints are whole or not there, and only safe content is read."""

from __future__ import annotations

import errno
import hashlib
import os
import pickle
from pathlib import Path

import pytest
import torch
from corruptions import count_noticed

from hookexp.checkpoint.loading import path_to_load
from hookexp.checkpoint.reading import load_checkpoint, read_file
from hookexp.checkpoint.store import CheckpointStore
from hookexp.checkpoint.whole_file import sha256_of
from hookexp.errors import ConfigError


def test_the_pointer_lists_every_kept_file_with_size_and_checksum(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save({"a": 1}, "epoch_1.pth")
    store.save({"a": 2}, "best_acc_epoch_1.pth", points_last=False)
    store.save({"a": 3}, "epoch_2.pth", obsolete=["epoch_1.pth"])
    lines = (tmp_path / "last_checkpoint").read_text().splitlines()
    assert lines[0] == "epoch_2.pth"
    for line in lines[1:]:
        digest, size, name = line.split()
        assert sha256_of(tmp_path / name) == digest
        assert (tmp_path / name).stat().st_size == int(size)
    assert [line.split()[2] for line in lines[1:]] == ["best_acc_epoch_1.pth", "epoch_2.pth"]
    assert not (tmp_path / "epoch_1.pth").exists()
    assert store.newest() == tmp_path / "epoch_2.pth"


def test_the_order_of_a_save(tmp_path, monkeypatch):
    """Write, fsync, rename, fsync the folder; the pointer likewise; then delete."""
    store = CheckpointStore(tmp_path)
    store.save({"a": 1}, "epoch_1.pth")
    steps = []
    real = {name: getattr(os, name) for name in ("fsync", "replace", "unlink")}
    folder = os.stat(tmp_path).st_ino

    def fsync(descriptor):
        steps.append("fsync folder" if os.fstat(descriptor).st_ino == folder else "fsync file")
        real["fsync"](descriptor)

    def replace(source, target):
        assert os.path.dirname(source) == os.path.dirname(target)
        steps.append(f"rename to {os.path.basename(target)}")
        real["replace"](source, target)

    def unlink(path, **kwargs):
        steps.append(f"delete {os.path.basename(path)}")
        real["unlink"](path, **kwargs)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", replace)
    monkeypatch.setattr(os, "unlink", unlink)
    store.save({"a": 2}, "epoch_2.pth", obsolete=["epoch_1.pth"])
    assert steps == [
        "fsync file",
        "rename to epoch_2.pth",
        "fsync folder",
        "fsync file",
        "rename to last_checkpoint",
        "fsync folder",
        "delete epoch_1.pth",
        "delete .obsolete",
    ]


def test_what_a_killed_save_had_not_deleted_goes_with_the_next_one(tmp_path, monkeypatch):
    class Killed(BaseException):
        pass

    def unlink(path, missing_ok=False):
        raise Killed

    store = CheckpointStore(tmp_path)
    store.save({"n": 1}, "epoch_1.pth")
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Path, "unlink", unlink)
        store.save({"n": 2}, "epoch_2.pth", obsolete=["epoch_1.pth"])
    assert (tmp_path / "epoch_1.pth").exists()
    CheckpointStore(tmp_path).save({"n": 3}, "epoch_3.pth")
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"epoch_2.pth", "epoch_3.pth", "last_checkpoint"}


def test_a_failed_write_leaves_everything_as_it_was(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save({"a": 1}, "epoch_1.pth")
    before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "disk full")))
    with pytest.raises(OSError, match="disk full"):
        store.save({"a": 2}, "epoch_2.pth", obsolete=["epoch_1.pth"])
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before


@pytest.mark.parametrize("is_listed", [False, True])
def test_a_list_that_cannot_be_written_leaves_no_file_that_nobody_lists(
    tmp_path, monkeypatch, is_listed
):
    store = CheckpointStore(tmp_path)
    store.save({"a": 1}, "epoch_1.pth")
    if is_listed:
        store.save({"a": 1}, "epoch_2.pth")
    real = store._write_pointer

    def write_pointer(newest, kept):
        if len(kept) == 2 and kept[-1].name == "epoch_2.pth":
            raise OSError(errno.ENOSPC, "full")
        real(newest, kept)

    monkeypatch.setattr(store, "_write_pointer", write_pointer)
    with pytest.raises(OSError, match="full"):
        store.save({"a": 2}, "epoch_2.pth")
    assert (tmp_path / "epoch_2.pth").exists() == is_listed
    newest = CheckpointStore(tmp_path).newest()
    assert newest == tmp_path / ("epoch_2.pth" if is_listed else "epoch_1.pth")


def test_what_a_killed_process_was_writing_is_removed(tmp_path):
    (tmp_path / ".epoch_1.pth.99999999.tmp").write_text("half")
    (tmp_path / "notes.tmp").write_text("mine")
    CheckpointStore(tmp_path).save({"a": 1}, "epoch_1.pth")
    names = sorted(p.name for p in tmp_path.iterdir())
    assert names == ["epoch_1.pth", "last_checkpoint", "notes.tmp"]


def test_files_that_are_not_listed_are_never_deleted(tmp_path):
    (tmp_path / "mine.pth").write_text("precious")
    CheckpointStore(tmp_path).save({"a": 1}, "epoch_1.pth", obsolete=["mine.pth"])
    assert (tmp_path / "mine.pth").read_text() == "precious"


@pytest.mark.parametrize("damage", ["truncate", "flip", "delete"])
def test_a_damaged_newest_file_gives_way_to_the_one_before(tmp_path, damage):
    store = CheckpointStore(tmp_path)
    store.save({"a": 1}, "epoch_1.pth")
    path = store.save({"a": 2}, "epoch_2.pth")
    data = bytearray(path.read_bytes())
    if damage == "truncate":
        path.write_bytes(data[:-7])
    elif damage == "flip":
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    else:
        path.unlink()
    assert store.newest() == tmp_path / "epoch_1.pth"


@pytest.mark.parametrize("key", ["resume", "load_from"])
def test_a_damaged_file_that_is_named_is_refused(tmp_path, key, caplog):
    weights = torch.arange(100.0)
    path = CheckpointStore(tmp_path).save({"weights": weights}, "epoch_1.pth")
    own, names = CheckpointStore(tmp_path / "other"), {"resume": None, "load_from": None}
    assert path_to_load(**{**names, key: str(path)}, own=own) == path
    content = bytearray(path.read_bytes())
    content[content.index(weights.numpy().tobytes()) + 7] ^= 1
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"epoch_1\.pth: is damaged, .* choose another"):
        path_to_load(**{**names, key: str(path)}, own=own)
    for beside in (lambda: (tmp_path / "last_checkpoint").write_text("x\ny\n"), lambda: None):
        caplog.clear()
        beside()
        assert path_to_load(**{**names, key: str(path)}, own=own) == path
        assert "parts of it have other checksums" in caplog.text


def test_nothing_whole_is_an_error_and_nothing_at_all_is_none(tmp_path):
    store = CheckpointStore(tmp_path)
    assert store.newest() is None
    store.save({"a": 1}, "epoch_1.pth").write_bytes(b"torn")
    with pytest.raises(ConfigError, match=r"no checkpoint .* is whole .*epoch_1\.pth"):
        store.newest()


class Evil:
    def __init__(self, trace):
        self.trace = trace

    def __reduce__(self):
        return os.system, (f"touch {self.trace}",)


def lose(folder):
    """Ways in which the list of a folder goes: only files were copied, the power went, ..."""
    pointer = folder / "last_checkpoint"
    yield from (pointer.unlink, lambda: pointer.write_bytes(b""), lambda: pointer.write_text("x\n"))


@pytest.mark.parametrize("way", range(3))
def test_a_lost_list_does_not_lose_the_checkpoints(tmp_path, way, caplog):
    store = CheckpointStore(tmp_path)
    for n in (2, 10, 9):
        store.save({"loop": {"iter": n}, "weights": torch.ones(100)}, f"iter_{n}.pth")
    store.save({"loop": {"iter": 11}}, "best_acc_iter_11.pth", points_last=False)
    store.save({"state_dict": {"w": torch.ones(3)}}, "published.pth", points_last=False)
    store.save({"loop": {"iter": 12}}, "exception_iter_12.pth", points_last=False)
    list(lose(tmp_path))[way]()
    assert CheckpointStore(tmp_path).newest() == tmp_path / "iter_10.pth"
    assert "lists no checkpoint that is whole; iter_10.pth is the furthest one" in caplog.text
    content = bytearray((tmp_path / "iter_10.pth").read_bytes())
    content[content.index(torch.ones(100).numpy().tobytes()) + 7] ^= 1
    (tmp_path / "iter_10.pth").write_bytes(content)
    assert CheckpointStore(tmp_path).newest() == tmp_path / "iter_9.pth"
    for n in (2, 9):
        os.truncate(tmp_path / f"iter_{n}.pth", 0 if n == 2 else 300)
    with pytest.raises(ConfigError, match=r"is whole \(checked: iter_10\.pth, iter_9\.pth, iter_2"):
        CheckpointStore(tmp_path).newest()


@pytest.mark.parametrize("trusted", [True, False])
@pytest.mark.parametrize("content", ["# notes", "{'a': 1}", "import os"])
def test_a_text_is_no_checkpoint_and_needs_no_trust(tmp_path, content, trusted):
    (tmp_path / "x.pth").write_text(content)
    with pytest.raises(ConfigError, match="it is torn or no checkpoint") as caught:
        read_file(tmp_path / "x.pth", trusted, way_out="; trust it")
    assert "code" not in str(caught.value) and "trust" not in str(caught.value)


def test_where_all_that_is_listed_is_damaged_another_whole_file_is_taken(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save({"loop": {"iter": 2}}, "iter_2.pth")
    (tmp_path / "last_checkpoint").unlink()
    store.save({"loop": {"iter": 3}}, "iter_3.pth")
    content = bytearray((tmp_path / "iter_3.pth").read_bytes())
    content[-1] ^= 1
    (tmp_path / "iter_3.pth").write_bytes(content)
    assert CheckpointStore(tmp_path).newest() == tmp_path / "iter_2.pth"


def test_a_file_that_cannot_be_opened_counts_as_damaged(tmp_path, monkeypatch):
    torch.save({"loop": {"iter": 1}}, tmp_path / "iter_1.pth")
    real = Path.open

    def refuse(path, *arguments, **more):
        if path.name == "iter_1.pth":
            raise PermissionError("not yours")
        return real(path, *arguments, **more)

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(ConfigError, match=r"is whole \(checked: iter_1\.pth\)"):
        CheckpointStore(tmp_path).newest()


def test_weights_alone_are_no_checkpoint_to_continue_from(tmp_path):
    assert CheckpointStore(tmp_path / "none").newest() is None
    CheckpointStore(tmp_path).save_by_checksum({"state_dict": {}}, "net")
    torch.save([1, 2], tmp_path / "list.pth")
    torch.save(torch.nn.Linear(2, 2), tmp_path / "whole_model.pth")
    torch.save({"loop": {"iter": "far"}}, tmp_path / "other.pth")
    torch.save({"loop": 3}, tmp_path / "another.pth")
    torch.save({"w": 1}, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    (tmp_path / "text.pth").write_text("hello")
    (tmp_path / "notes.txt").write_text("")
    assert CheckpointStore(tmp_path).newest() is None


def test_a_hostile_file_runs_nothing(tmp_path):
    path, trace = tmp_path / "evil.pth", tmp_path / "it_ran"
    torch.save({"state_dict": {}, "meta": [Evil(trace)]}, path)
    with pytest.raises(ConfigError, match="not loaded"):
        load_checkpoint(path)
    path.write_bytes(pickle.dumps(Evil(trace), protocol=2))
    with pytest.raises(ConfigError):
        load_checkpoint(path)
    assert not trace.exists()


@pytest.mark.parametrize("make", ["absent", "text", "passwd", "folder", "list"])
def test_what_is_no_checkpoint_says_so(tmp_path, make):
    path = tmp_path / "x.pth"
    if make == "text":
        path.write_text("hello")
    elif make == "passwd":
        path.write_text("root:x:0:0:root:/root:/bin/bash\n" * 30)
    elif make == "folder":
        path.mkdir()
    elif make == "list":
        torch.save([1], path)
    with pytest.raises(ConfigError, match=r"checkpoint .*x\.pth"):
        load_checkpoint(path)


def test_a_hundred_corruptions_are_noticed(tmp_path):
    done, noticed = count_noticed(100, tmp_path)
    assert noticed == done


@pytest.mark.parametrize("killed_at", ["before the rename", "after the rename"])
def test_a_kill_while_a_listed_name_is_saved_again_leaves_a_whole_file(
    tmp_path, monkeypatch, killed_at
):
    class Killed(BaseException):
        pass

    store = CheckpointStore(tmp_path)
    path = store.save({"a": 1}, "epoch_1.pth")
    real = os.replace

    def replace(source, target):
        is_checkpoint = str(target) == str(path)
        if is_checkpoint and killed_at == "before the rename":
            raise Killed
        real(source, target)
        if is_checkpoint:
            raise Killed

    monkeypatch.setattr(os, "replace", replace)
    with pytest.raises(Killed):
        store.save({"a": 2}, "epoch_1.pth")
    monkeypatch.undo()
    assert store.newest() == path
    assert load_checkpoint(path)["a"] == (1 if killed_at == "before the rename" else 2)
    store.save({"a": 3}, "epoch_1.pth")
    assert len((tmp_path / "last_checkpoint").read_text().splitlines()) == 2


def test_the_checksum_is_that_of_the_file_whatever_the_size_of_its_pieces(tmp_path):
    store = CheckpointStore(tmp_path)
    small, large = torch.arange(10.0), torch.arange(3_000_000.0)
    path = store.save({"small": small, "large": large}, "epoch_1.pth")
    assert path.stat().st_size > large.nbytes
    listed = (tmp_path / "last_checkpoint").read_text().splitlines()[1]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert listed == f"{digest} {path.stat().st_size} epoch_1.pth"

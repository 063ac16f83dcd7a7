"""Disks that fill up and folders that turn read-only while a run writes; real ones."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from hookexp.checkpoint.store import CheckpointStore
from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.logger import LoggerHook
from hookexp.log import LogFile
from hookexp.sinks.jsonl import JsonlSink


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 1 MiB in memory."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("mounting a file system is not permitted here")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


class AtIteration(Hook):
    """Does something to the disk once, and makes rows longer than what is left of a page."""

    def __init__(self, iteration, do):
        self.iteration, self.do = iteration, do

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.message_hub.update_scalars({f"train/{n}": 1.0 for n in range(500)})
        if runner.iter == self.iteration:
            self.do(runner.work_dir)


def fill(folder: Path):
    """Take all there is, to the last byte."""
    with (folder.parent / "filling").open("wb", buffering=0) as file:
        for size in (1 << 16, 1 << 8, 1):
            try:
                while file.write(bytes(size)) == size:
                    pass
            except OSError:
                continue


def run_on(make_runner, folder, do, **checkpoint):
    hooks = {
        "checkpoint": CheckpointHook(
            by_epoch=False, max_keep_ckpts=1, async_save=False, **checkpoint
        ),
        "logger": LoggerHook(interval=1),
        "trouble": AtIteration(3, do),
    }
    runner = make_runner(hooks, work_dir=folder, max_epochs=2, sinks={"jsonl": JsonlSink()})
    log = LogFile(folder / "run.log")
    runner.logger.addHandler(log)
    try:
        return runner, runner.run("train")
    finally:
        runner.logger.removeHandler(log)
        log.close()


def whole_files(folder):
    """What is left under a final name, all of it whole."""
    store = CheckpointStore(folder)
    _, *lines = (folder / "last_checkpoint").read_text().splitlines()
    names = [line.split()[2] for line in lines]
    assert all(store.is_whole(name) for name in names)
    assert list(folder.glob(".*.tmp")) == []
    return names


def test_a_full_disk_stops_the_run_and_leaves_the_last_good_checkpoint(
    make_runner, small_disk, capsys
):
    with pytest.raises(ConfigError) as caught:
        run_on(make_runner, small_disk / "run", fill)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "checkpoint iter_4.pth could not be written" in message
    assert "and 0.0 MiB of the disk are free. The last good one is iter_3.pth" in message
    assert "Make room and continue with resume=auto" in message
    assert whole_files(small_disk / "run") == ["iter_3.pth"]
    os.unlink(small_disk / "filling")
    folder = small_disk / "run"
    rest = make_runner(
        {"checkpoint": CheckpointHook(by_epoch=False, max_keep_ckpts=1)},
        work_dir=folder,
        max_epochs=2,
        resume="auto",
    )
    assert rest.run("train").iter == 6
    assert whole_files(folder) == ["iter_6.pth"]


def test_on_a_full_disk_a_run_can_go_on_to_its_end(make_runner, small_disk, caplog, capsys):
    caplog.set_level(logging.WARNING, "hookexp")
    runner, summary = run_on(make_runner, small_disk / "run", fill, on_write_error="go_on")
    assert summary.status == "finished" and runner.iter == 6
    assert whole_files(small_disk / "run") == ["iter_3.pth"]
    assert caplog.text.count("iter_4.pth could not be written") == 1
    assert caplog.text.count("sink 'jsonl' failed, the run goes on (this is said once)") == 1
    assert caplog.text.count("the summary could not be written") == 1
    out, err = capsys.readouterr()
    assert out.count("takes no more messages (No space left on device)") == 1
    assert err == ""


def test_when_there_is_room_again_what_was_obsolete_goes(make_runner, small_disk):
    class Room(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 5:
                os.unlink(small_disk / "filling")

    folder = small_disk / "run"
    hooks = {
        "checkpoint": CheckpointHook(by_epoch=False, max_keep_ckpts=1, on_write_error="go_on"),
        "trouble": AtIteration(3, fill),
        "room": Room(),
    }
    make_runner(hooks, work_dir=folder, max_epochs=2).run("train")
    assert whole_files(folder) == ["iter_6.pth"]
    assert [p.name for p in folder.glob("*.pth")] == ["iter_6.pth"]


@pytest.fixture
def read_only(tmp_path):
    """Makes a folder one that takes no file, also from root; undone at the end."""
    folders = []

    def lock(folder):
        folders.append(folder)
        if subprocess.run(["chattr", "+i", str(folder)], capture_output=True).returncode:
            folder.chmod(0o555)
            if os.access(folder, os.W_OK):
                pytest.skip("no folder can be made read-only here")

    yield lock
    for folder in folders:
        subprocess.run(["chattr", "-i", str(folder)], capture_output=True)
        folder.chmod(0o755)


@pytest.mark.parametrize("on_write_error", ["stop", "go_on"])
def test_a_folder_that_turns_read_only(make_runner, tmp_path, read_only, on_write_error, caplog):
    folder = tmp_path / "run"

    def run():
        return run_on(make_runner, folder, read_only, on_write_error=on_write_error)

    if on_write_error == "stop":
        with pytest.raises(ConfigError, match=r"iter_4\.pth could .*Make the folder writable and"):
            run()
    else:
        assert run()[1].iter == 6
        assert "iter_6.pth could not be written" in caplog.text
    assert whole_files(folder) == ["iter_3.pth"]

"""Files that arrive elsewhere while a run trains, by copies and by real commands."""

from __future__ import annotations

import errno
import inspect
import os
import sys
import threading
import time
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hookexp.compose.conf_dir import conf_dir
from hookexp.compose.instantiate import instantiate
from hookexp.errors import ConfigError
from hookexp.hook import Hook, Priority
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.upload import UploadHook


class Arrived(Hook):
    """What is at the target at the beginning of each epoch, once the thread is idle."""

    priority = Priority.LOWEST

    def __init__(self, upload, target):
        self.upload = upload
        self.target = target
        self.names = []

    def before_train_epoch(self, runner):
        if self.upload._running is not None:
            self.upload._running.result()
        self.names.append(sorted(p.name for p in self.target.rglob("*.pth")))


def epochs(*numbers):
    return [f"epoch_{n}.pth" for n in numbers]


def contents(folder):
    files = [p for p in folder.rglob("*") if p.is_file() and not p.name.startswith(".")]
    return {p.relative_to(folder).as_posix(): p.read_bytes() for p in files}


@pytest.mark.parametrize(
    ("interval", "arrived"),
    [
        (1, [[], epochs(1), epochs(1, 2), epochs(1, 2, 3)]),
        (2, [[], [], epochs(1, 2), epochs(1, 2)]),
    ],
)
def test_new_files_arrive_while_it_trains(make_runner, tmp_path, interval, arrived):
    target = tmp_path / "archive"
    upload = UploadHook(interval=interval, target=str(target))
    probe = Arrived(upload, target)
    checkpoint = CheckpointHook(async_save=False)
    hooks = {"checkpoint": checkpoint, "upload": upload, "probe": probe}
    runner = make_runner(hooks, max_epochs=4)
    (runner.work_dir / ".hydra").mkdir()
    (runner.work_dir / ".hydra" / "config.yaml").write_text("name: tiny\n")
    (runner.work_dir / ".another_is_writing").write_text("no")
    runner.run("train")
    assert probe.names == arrived
    there = target / tmp_path.name / "run"
    of_the_run = contents(runner.work_dir)
    assert contents(there) == of_the_run
    assert set(of_the_run) == {
        *epochs(1, 2, 3, 4),
        "last_checkpoint",
        "summary.json",
        ".hydra/config.yaml",
    }
    assert [p.name for p in there.rglob(".*")] == [".hydra"]


def test_iterations_can_be_counted_instead(make_runner, tmp_path):
    starts = []

    class Noted(UploadHook):
        def _start(self, runner):
            starts.append(runner.iter)
            super()._start(runner)

    upload = Noted(interval=2, by_epoch=False, target=str(tmp_path / "archive"))
    make_runner({"upload": upload}, max_epochs=2).run("train")
    assert starts == [2, 4]


def test_training_does_not_wait_for_a_slow_upload(make_runner, tmp_path):
    is_training_done = threading.Event()
    waited_for_training = []

    class Slow(UploadHook):
        def _upload(self, path, name, version):
            waited_for_training.append(is_training_done.wait(10))
            super()._upload(path, name, version)

    class Last(Hook):
        def after_train(self, runner):
            is_training_done.set()

    upload = Slow(target=str(tmp_path / "archive"))
    hooks = {"checkpoint": CheckpointHook(async_save=False), "upload": upload, "last": Last()}
    make_runner(hooks, max_epochs=3).run("train")
    assert waited_for_training and all(waited_for_training)
    there = tmp_path / "archive" / tmp_path.name / "run"
    assert sorted(p.name for p in there.glob("*.pth")) == epochs(1, 2, 3)


def copy_command(tmp_path):
    """A real command that copies `{path}` to `{name}`, and fails for a.txt while `.broken` is."""
    script = tmp_path / "put.py"
    script.write_text(
        "import pathlib, shutil, sys\n"
        "path, name = sys.argv[1:]\n"
        f"root = pathlib.Path({str(tmp_path / 'bucket')!r})\n"
        "if name == 'a.txt' and (root / '.broken').exists():\n"
        "    sys.exit('no room for ' + name)\n"
        "(root / name).parent.mkdir(parents=True, exist_ok=True)\n"
        "shutil.copy(path, root / name)\n"
        "with (root / '.log').open('a') as log:\n"
        "    log.write(name + '\\n')\n"
    )
    (tmp_path / "bucket").mkdir()
    return f"{sys.executable} {script} {{path}} {{name}}"


class Writer(Hook):
    """Writes a.txt anew and a file of its own in each epoch; mends the bucket in the last."""

    def __init__(self, broken):
        self.broken = broken

    def before_train(self, runner):
        (runner.work_dir / "a.txt").write_text("first")

    def after_train_epoch(self, runner):
        folder = runner.work_dir / "sub dir"
        folder.mkdir(exist_ok=True)
        (folder / f"{runner.epoch}.txt").write_text("x")
        if runner.epoch == 1:
            (runner.work_dir / "a.txt").write_text("changed")

    def after_train(self, runner):
        self.broken.unlink(missing_ok=True)


def test_a_command_gets_new_and_changed_files_once(make_runner, tmp_path):
    upload = UploadHook(command=copy_command(tmp_path))
    bucket = tmp_path / "bucket"
    probe = Arrived(upload, bucket)
    hooks = {"writer": Writer(bucket / ".broken"), "upload": upload, "probe": probe}
    make_runner(hooks, max_epochs=3).run("train")
    log = (bucket / ".log").read_text().splitlines()
    assert sorted(log) == [
        "a.txt",
        "a.txt",
        *(f"sub dir/{n}.txt" for n in range(3)),
        "summary.json",
    ]
    assert contents(bucket)["a.txt"] == b"changed"


def test_an_error_is_warned_about_once_and_tried_again(make_runner, tmp_path, caplog):
    upload = UploadHook(command=copy_command(tmp_path))
    bucket = tmp_path / "bucket"
    broken = bucket / ".broken"
    broken.touch()
    probe = Arrived(upload, bucket)
    hooks = {"writer": Writer(broken), "upload": upload, "probe": probe}
    make_runner(hooks, max_epochs=4, hook_budget=None).run("train")
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "a.txt could not be uploaded, it is tried again" in warnings[0]
    assert "ended with code 1: no room for a.txt" in warnings[0]
    assert set(contents(bucket)) == {
        "a.txt",
        "summary.json",
        *(f"sub dir/{n}.txt" for n in range(4)),
    }


def test_what_never_arrived_is_named_at_the_end(make_runner, tmp_path, caplog):
    upload = UploadHook(
        command=f"{sys.executable} -c 'import time; time.sleep(60)' {{path}}", timeout=0.2
    )
    writer = Writer(tmp_path / "nothing")
    hooks = {"writer": writer, "upload": upload}
    make_runner(hooks, max_epochs=1, hook_budget=None).run("train")
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "timed out after 0.2 seconds" in warnings[0]
    assert warnings[1:] == ["hook 'upload': not uploaded: a.txt, sub dir/0.txt, summary.json"]


def test_a_run_that_fails_uploads_what_there_is(make_runner, tmp_path):
    class Bomb(Hook):
        def after_train_epoch(self, runner):
            raise RuntimeError("boom")

    hooks = {"writer": Writer(tmp_path / "no"), "upload": UploadHook(target=str(tmp_path / "to"))}
    with pytest.raises(RuntimeError, match="boom"):
        make_runner({**hooks, "bomb": Bomb()}, max_epochs=1).run("train")
    there = tmp_path / "to" / tmp_path.name / "run"
    assert set(contents(there)) == {"a.txt", "sub dir/0.txt"}


def test_a_file_that_is_there_is_not_copied_again(make_runner, tmp_path):
    def run():
        hooks = {"upload": UploadHook(target=str(tmp_path / "to"))}
        make_runner(hooks, max_epochs=1).run("train")

    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "a.txt").write_text("x")
    there = tmp_path / "to" / tmp_path.name / "run" / "a.txt"
    run()
    first = there.stat().st_ino
    run()
    assert there.stat().st_ino == first
    os.utime(tmp_path / "run" / "a.txt", ns=(1, 1))
    run()
    assert there.stat().st_ino != first


def test_a_file_deleted_meanwhile_is_no_failure(make_runner, tmp_path, caplog):
    class Pruned(UploadHook):
        def _upload(self, path, name, version):
            path.unlink()
            super()._upload(path, name, version)

    hooks = {"writer": Writer(Path("no")), "upload": Pruned(target=str(tmp_path / "to"))}
    make_runner(hooks, max_epochs=1, hook_budget=None).run("train")
    assert not [r for r in caplog.records if r.levelname == "WARNING"]


def test_a_folder_deleted_while_it_is_walked_is_no_failure(
    make_runner, tmp_path, caplog, monkeypatch
):
    look, deleted = os.scandir, []

    def too_late(path):
        if str(path).endswith("passing"):
            Path(path).rmdir()
            deleted.append(path)
        return look(path)

    (tmp_path / "run" / "passing").mkdir(parents=True)
    monkeypatch.setattr(os, "scandir", too_late)
    hooks = {"writer": Writer(Path("no")), "upload": UploadHook(target=str(tmp_path / "to"))}
    make_runner(hooks, max_epochs=1, hook_budget=None).run("train")
    assert len(deleted) == 1
    assert not [r for r in caplog.records if r.levelname == "WARNING"]
    there = tmp_path / "to" / tmp_path.name / "run"
    assert set(contents(there)) == {"a.txt", "sub dir/0.txt", "summary.json"}


def test_a_folder_that_cannot_be_read_is_named_at_the_end(
    make_runner, tmp_path, caplog, monkeypatch
):
    look = os.scandir

    def broken(path):
        if str(path).endswith("sub dir"):
            raise OSError(errno.EIO, "Input/output error", str(path))
        return look(path)

    monkeypatch.setattr(os, "scandir", broken)
    hooks = {"writer": Writer(Path("no")), "upload": UploadHook(target=str(tmp_path / "to"))}
    make_runner(hooks, max_epochs=1, hook_budget=None).run("train")
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert "Input/output error" in warnings[0]
    assert warnings[1:] == ["hook 'upload': not uploaded: sub dir"]


def test_the_runs_own_folder_is_no_target(make_runner, tmp_path):
    for target in (tmp_path / "run", tmp_path / "run" / "sub", tmp_path.parent):
        runner = make_runner({"upload": UploadHook(target=str(target))}, max_epochs=1)
        with pytest.raises(ConfigError, match=r"hooks\.upload\.target=.*the run's own folder"):
            runner.run("train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "target=None and command=None: give one of the two"),
        ({"target": "a", "command": "b {path}"}, "give one of the two"),
        ({"command": "cp a b"}, "command=cp a b: has to contain {path}"),
        ({"target": "a", "interval": 0}, "interval=0: use a whole number"),
        ({"target": "a", "timeout": 0}, "timeout=0: use a number of seconds above 0"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        UploadHook(**arguments)


def test_the_config_shows_every_parameter_with_its_default():
    config = OmegaConf.load(conf_dir() / "hooks" / "upload" / "default.yaml")
    assert config.pop("priority") is None
    config.target = "there"
    made, by_default = instantiate(config, "hooks.upload"), UploadHook(target="there")
    for name, value in vars(by_default).items():
        assert name.startswith("_") or getattr(made, name) == value
    assert set(config) == {"_target_", *inspect.signature(UploadHook).parameters}
    assert UploadHook.priority == Priority.LOWEST


def test_a_checkpoint_in_flight_is_written_before_a_failed_run_is_uploaded(
    make_runner, tmp_path, monkeypatch
):
    class Bomb(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                raise RuntimeError("boom")

    hooks = {
        "checkpoint": CheckpointHook(),
        "upload": UploadHook(target=str(tmp_path / "archive")),
        "bomb": Bomb(),
    }
    runner = make_runner(hooks, max_epochs=2, val_size=0)
    save = runner.writer.store.save

    def save_late(*arguments):
        time.sleep(0.3)
        return save(*arguments)

    monkeypatch.setattr(runner.writer.store, "save", save_late)
    with pytest.raises(RuntimeError, match="boom"):
        runner.run("train")
    assert sorted(p.name for p in (tmp_path / "archive").rglob("*.pth")) == epochs(1)


def test_a_run_by_iterations_is_told_that_it_uploads_at_its_end_alone(
    make_runner, tmp_path, caplog
):
    for by_epoch in (False, True):
        assert "by_epoch=false" not in caplog.text
        hook = UploadHook(by_epoch=by_epoch, target=str(tmp_path / "archive"))
        make_runner({"upload": hook}, max_iters=4, val_size=0).run("train")
    assert "set hooks.upload.by_epoch=false hooks.upload.interval=3" in caplog.text

"""Signals end a run at its next safe point, with its state saved and the code that says so."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch
from fakes import Recorder, TinyData, TinyTask
from torch.utils.data import DataLoader

from hookexp.checkpoint.reading import load_checkpoint
from hookexp.data.loader import WorkerLoader
from hookexp.data.sampler import BatchSampler
from hookexp.data.stream import BatchStream
from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.ema import EMAHook
from hookexp.signals import disregard_stop_signals, leave_quietly

ROOT = Path(__file__).parent.parent
CODES = [("SIGTERM", 143), ("SIGUSR1", 143), ("SIGINT", 130), ("SIGHUP", 129)]


class Send(Hook):
    """Sends this process a signal at a mount point, once."""

    def __init__(self, point: str, number: int, at_iter: int) -> None:
        def send(runner, *args, **kwargs):
            if runner.iter == at_iter:
                os.kill(os.getpid(), number)

        setattr(self, point, send)
        self._point = point

    def get_triggered_stages(self):
        return [self._point]


@pytest.mark.parametrize(("name", "code"), CODES)
def test_a_signal_in_training_saves_within_the_iteration(make_runner, name, code):
    handlers = [signal.getsignal(getattr(signal, other)) for other, _ in CODES]
    send = Send("before_train_iter", getattr(signal, name), at_iter=4)
    runner = make_runner({"checkpoint": CheckpointHook(), "send": send}, max_epochs=9)
    summary = runner.run("train")
    assert (summary.status, summary.exit_code) == ("stopped", code)
    assert load_checkpoint(runner.work_dir / "iter_5.pth")["loop"]["iter"] == 5
    assert handlers == [signal.getsignal(getattr(signal, other)) for other, _ in CODES]


def test_a_run_that_was_started_with_nohup_outlives_its_terminal(make_runner):
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        send = Send("before_train_iter", signal.SIGHUP, at_iter=4)
        summary = make_runner({"send": send}, max_epochs=2).run("train")
    finally:
        signal.signal(signal.SIGHUP, before)
    assert (summary.status, summary.exit_code) == ("finished", 0)


def test_a_signal_in_validation_gives_it_up_and_the_resume_validates_again(make_runner):
    class DrawingTask(TinyTask):
        """Its validation draws random numbers, as dropout at test time would."""

        def val_step(self, model, batch):
            torch.rand(3)
            return super().val_step(model, batch)

    def run(hooks, folder, **more):
        torch.manual_seed(3)
        runner = make_runner(
            {"ema": EMAHook(momentum=0.1), "checkpoint": CheckpointHook(interval=2), **hooks},
            task=DrawingTask(),
            work_dir=folder,
            val_size=24,
            max_epochs=2,
            **more,
        )
        return runner, runner.run("train")

    base = make_runner(max_epochs=1).work_dir.parent
    recorder = Recorder()
    send = Send("after_val_iter", signal.SIGTERM, at_iter=3)
    cut, summary = run({"send": send, "recorder": recorder}, base / "cut")
    assert summary.exit_code == 143
    assert "after_val_epoch" not in recorder.points
    checkpoint = load_checkpoint(cut.work_dir / "epoch_1.pth")
    assert checkpoint["loop"]["phase"] == "validate"
    rest, _ = run({"recorder": recorder}, base / "cut", resume="auto")
    whole, _ = run({"recorder": Recorder()}, base / "whole")
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[key])
    assert rest.objective == whole.objective


def test_a_second_ctrl_c_leaves_at_once(make_runner):
    pid = os.fork()
    if pid == 0:
        for point in ("before_train_iter", "after_train_iter"):
            send = Send(point, signal.SIGINT, at_iter=1)
            first = Send("before_train_iter", signal.SIGINT, at_iter=1)
        make_runner({"first": first, "send": send}, max_epochs=9).run("train")
        os._exit(99)
    _, status = os.waitpid(pid, 0)
    assert os.waitstatus_to_exitcode(status) == 130


def test_a_forked_process_is_not_concerned(make_runner):
    class Fork(Hook):
        status = None

        def before_train(self, runner):
            pid = os.fork()
            if pid == 0:
                os.kill(os.getpid(), signal.SIGTERM)
                os._exit(99)
            _, self.status = os.waitpid(pid, 0)

    hook = Fork()
    summary = make_runner({"fork": hook}, max_epochs=1).run("train")
    assert os.WTERMSIG(hook.status) == signal.SIGTERM
    assert summary.status == "finished"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_no_worker_of_the_data_loader_outlives_its_run(make_runner, number):
    assert_workers_leave(make_runner, number, code=143 if number == signal.SIGTERM else -9)


def test_no_worker_outlives_a_run_that_was_killed_before_it_began(make_runner, monkeypatch):
    def wait_for_the_end_of_the_run():
        wait_for(lambda: os.getppid() != multiprocessing.parent_process().pid)

    monkeypatch.setattr("hookexp.data.workers.disregard_stop_signals", wait_for_the_end_of_the_run)
    assert_workers_leave(make_runner, signal.SIGKILL, code=-9)


class SlowData(TinyData):
    def __getitem__(self, index):
        time.sleep(0.01)
        return super().__getitem__(index)


def own_loader():
    sampler = BatchSampler(24, 4, seed=0, shuffle=True)
    return WorkerLoader(SlowData(24), sampler, num_workers=2)


def loader_of_a_user():
    return BatchStream(DataLoader(SlowData(24), batch_size=4, num_workers=2))


@pytest.mark.parametrize(("name", "code"), CODES)
@pytest.mark.parametrize("make_loader", [own_loader, loader_of_a_user])
def test_a_signal_to_all_processes_of_a_job_leaves_the_workers_to_the_run(
    make_runner, name, code, make_loader
):
    number = getattr(signal, name)
    assert_workers_leave(make_runner, number, code, make_loader(), to_all=True)


def test_a_worker_is_born_with_signals_held_back(make_runner, monkeypatch):
    def take_a_while():
        time.sleep(0.5)
        disregard_stop_signals()

    monkeypatch.setattr("hookexp.data.workers.disregard_stop_signals", take_a_while)
    assert_workers_leave(make_runner, signal.SIGTERM, 143, to_all=True)


class HangingData(TinyData):
    def __getitem__(self, index):
        time.sleep(1000)


def end_by_close(loader):
    loader.close()


def end_as_python_does_at_its_exit(loader):
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # Torch's raises that a worker was killed.
    multiprocessing.util._exit_function()


@pytest.mark.parametrize("end", [end_by_close, end_as_python_does_at_its_exit])
def test_a_worker_that_hangs_is_killed(monkeypatch, end):
    monkeypatch.setattr("torch.utils.data._utils.MP_STATUS_CHECK_INTERVAL", 0.1)
    loader = WorkerLoader(HangingData(24), BatchSampler(24, 4, seed=0, shuffle=True), num_workers=2)
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            loader.iterate(0)
            workers = multiprocessing.active_children()
            end(loader)
            wait_for(lambda: not any(worker.is_alive() for worker in workers))
            os._exit(0)
        finally:
            os._exit(1)
    try:
        wait_for(lambda: not is_running(pid), seconds=20.0)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(pid, signal.SIGKILL)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


class StartsAProgram(TinyData):
    def __getitem__(self, index):
        program = subprocess.Popen(["sleep", "1000"])
        program.terminate()
        return torch.tensor(program.wait(timeout=30))


def test_a_program_that_a_worker_starts_heeds_signals():
    sampler = BatchSampler(4, 4, seed=0, shuffle=True)
    loader = WorkerLoader(StartsAProgram(4), sampler, num_workers=1)
    assert next(loader.iterate(0)).tolist() == [-signal.SIGTERM] * 4
    loader.close()


def assert_workers_leave(make_runner, number, code, loader=None, to_all=False):
    runner = make_runner(max_epochs=10**6, val_size=0)
    runner._parts.train_loader = runner.train_loop.dataloader = loader or own_loader()
    pid = os.fork()
    if pid == 0:
        try:
            os.setsid()
            os._exit(runner.run("train").exit_code)
        finally:
            os._exit(1)
    workers = wait_for(lambda: children_of(pid))
    (os.killpg if to_all else os.kill)(pid, number)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == code
    assert wait_for(lambda: not any(map(is_running, workers)))


def is_running(pid):
    """Whether a process is more than an entry that nobody has asked for its exit code yet."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def children_of(pid):
    paths = Path(f"/proc/{pid}/task").glob("*/children")
    children = [int(word) for path in paths for word in path.read_text().split()]
    return children if len(children) == 2 else []


def wait_for(condition, seconds=60.0):
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        found = condition()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError("it did not happen")


SIGNALS = [
    ("SIGTERM", 143, "stopped by SIGTERM"),
    ("SIGINT", 130, "interrupted"),
    ("SIGHUP", 129, "stopped by SIGHUP"),
]


def code_of(block):
    """The code that a process of its own leaves with; 99 if it gets to the block's end."""
    pid = os.fork()
    if pid == 0:
        try:
            with leave_quietly():
                block()
        except SystemExit as error:
            os._exit(error.code)
        os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.mark.parametrize(("name", "code", "said"), SIGNALS)
def test_before_the_first_run_a_signal_leaves_at_once(capfd, name, code, said):
    def block():
        with suppress(BaseException):  # What is being imported may do this.
            os.kill(os.getpid(), getattr(signal, name))

    assert code_of(block) == code
    assert f"hookexp: {said}\n" in capfd.readouterr().err


def test_outside_of_a_run_a_forked_process_is_not_concerned(make_runner, capfd):
    def end_a_child():
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(99)
        assert os.WTERMSIG(os.waitpid(pid, 0)[1]) == signal.SIGTERM

    def block():
        end_a_child()
        make_runner(max_epochs=1).run("train")
        end_a_child()

    assert code_of(block) == 99
    assert "hookexp:" not in capfd.readouterr().err


@pytest.mark.parametrize(("name", "code", "said"), SIGNALS)
@pytest.mark.parametrize("where", ["before the next", "after the last", "twice"])
def test_after_a_run_a_signal_lets_the_sweep_report(make_runner, capfd, name, code, said, where):
    def block():
        make_runner(max_epochs=1).run("train")
        number = getattr(signal, name)
        os.kill(os.getpid(), number)
        print("reported", flush=True)
        if where == "twice":
            os.kill(os.getpid(), number)
            print("still here", flush=True)
        if where != "after the last":
            make_runner(max_epochs=1).run("train")
            print("trained", flush=True)

    assert code_of(block) == code
    out, err = capfd.readouterr()
    assert f"hookexp: {said}\n" in err
    assert "reported" in out and "trained" not in out and "still here" not in out


def test_a_signal_while_a_run_is_being_wound_up_lets_it_be_wound_up(make_runner):
    class Slow(Hook):
        ended = False

        def after_run(self, runner):
            os.kill(os.getpid(), signal.SIGTERM)
            self.ended = True

    hook = Slow()
    summary = make_runner({"slow": hook}, max_epochs=1).run("train")
    assert (summary.status, summary.exit_code, hook.ended) == ("finished", 143, True)


def test_what_starts_a_process_imports_little_before_it_knows_signals():
    code = (
        "import sys, hookexp.__main__\n"
        "print(sum('hydra' in name or 'torch' in name for name in sys.modules))"
    )
    answer = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert answer.stdout == "0\n"

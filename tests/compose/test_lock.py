"""One process to a folder, on file systems of all kinds, and what another one leaves alone."""

from __future__ import annotations

import errno
import fcntl
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from hookexp.compose.folders import FolderInUse
from hookexp.compose.lock import lock, locked

_HOLD = (
    "import sys; from pathlib import Path; from hookexp.compose.lock import lock; "
    "lock(Path(sys.argv[1])); print(flush=True); sys.stdin.read()"
)


@contextmanager
def held_by_another_process(folder: Path) -> Iterator[int]:
    command = [sys.executable, "-c", _HOLD, str(folder)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None and process.stdout is not None
        process.stdout.readline()
        yield process.pid
        process.stdin.close()


def test_a_folder_that_another_process_has(tmp_path: Path) -> None:
    with (
        held_by_another_process(tmp_path) as pid,
        pytest.raises(FolderInUse, match=rf"is in use by another run \(process {pid}\)"),
    ):
        lock(tmp_path)
    with locked(tmp_path):
        pass


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_forked_process_has_no_part_in_it(tmp_path: Path) -> None:
    with locked(tmp_path):
        pid = os.fork()
        if pid == 0:
            try:
                lock(tmp_path)
            except FolderInUse:
                os._exit(7)
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_where_there_are_no_locks_a_run_goes_on_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: Any, number: int
) -> None:
    def without(*arguments: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "lockf", without)
    for _ in range(2):
        with locked(tmp_path):
            lock(tmp_path)
    assert len(caplog.messages) == 2
    assert caplog.messages[0] == (
        f"{tmp_path}: its file system has no locks ({os.strerror(number).lower()}), so nothing "
        "keeps a second run out of this folder"
    )


def test_a_job_whose_folder_another_process_has_leaves_its_summary_alone(
    cli: Callable[..., Any], stub_runs: list[Any]
) -> None:
    job = Path("sweep/0_seed-1")
    job.mkdir(parents=True)
    (job / "summary.json").write_text("{}")
    with held_by_another_process(job):
        answer = cli("-m", "hydra.sweep.dir=sweep", "resume=auto", "seed=1,2")
    assert answer.code == 1
    assert "0_seed-1: is in use by another run (process " in answer.err
    assert (job / "summary.json").read_text() == "{}"
    assert [work_dir.name for _, work_dir in stub_runs] == ["1_seed-2"]

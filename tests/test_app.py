"""The command line as a user meets it: true processes, started from an empty folder."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
HOOKS = """
import os
from hookexp import Hook

class Hello(Hook):
    def before_train(self, runner):
        runner.logger.info("hello from %s", os.getcwd())

class Chatty(Hook):
    def before_train(self, runner):
        print("hello", flush=True)

class Bad(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        raise RuntimeError("boom")
"""
SHORT = ("trainer.max_iters=3", "trainer.device=cpu", "sinks=-tensorboard")


def start(folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    environment.pop("HYDRA_FULL_ERROR", None)
    return subprocess.Popen(
        [sys.executable, "-m", "hookexp", *words],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def interpret(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )


def weights(folder: Path) -> dict[str, torch.Tensor]:
    newest = (folder / "last_checkpoint").read_text().splitlines()[0]
    state: dict[str, torch.Tensor] = torch.load(folder / newest, weights_only=True)["state_dict"]
    return state


def test_runs_started_at_once_with_a_hook_of_the_current_folder(tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text(HOOKS)
    words = (*SHORT, "+hooks.mine._target_=my_module.Hello")
    answers = [finish(process) for process in [start(tmp_path, *words) for _ in range(2)]]
    for code, out, err in answers:
        assert (code, err) == (0, "")
        assert f"hello from {tmp_path}" in out
    folders = list((tmp_path / "outputs" / "hookexp").glob("*/*"))
    assert len(folders) == 2
    for folder in folders:
        assert json.loads((folder / "summary.json").read_text())["status"] == "finished"
        assert "hello from" in (folder / "hookexp.log").read_text()


def test_a_run_without_trouble_says_nothing_on_stderr(tmp_path: Path) -> None:
    """Also no advice of Hydra's: it has some for other uses of it than this one."""
    code, _, err = finish(start(tmp_path, *SHORT))
    assert (code, err) == (0, "")


@pytest.mark.parametrize("closed", [">&-", "2>&-"])
def test_a_run_that_nobody_listens_to_ends_well(tmp_path: Path, closed: str) -> None:
    command = f"{sys.executable} -m hookexp {' '.join(SHORT)} {closed}"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    (summary,) = tmp_path.rglob("summary.json")
    assert json.loads(summary.read_text())["status"] == "finished"


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="nothing that is always full")
def test_a_stdout_that_takes_no_more_is_told_once_and_the_run_goes_on(tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text(HOOKS)
    words = (*SHORT, "+hooks.mine._target_=my_module.Chatty")
    command = f"{sys.executable} -m hookexp {' '.join(words)} > /dev/full"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["sh", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert "stdout takes no more (No space left on device)" in done.stderr
    (log,) = tmp_path.rglob("hookexp.log")
    assert "finished after" in log.read_text()


@pytest.mark.parametrize("module", ["random", "queue"])
def test_a_file_that_hides_a_module_is_named(tmp_path: Path, module: str) -> None:
    (tmp_path / f"{module}.py").write_text("mine = 1\n")
    code, _, err = finish(start(tmp_path, *SHORT))
    assert code == 1
    said = f"hookexp: {tmp_path}/{module}.py: hides the module {module} from all that imports it"
    assert err.startswith(said) and "Traceback" not in err


def test_a_bug_shows_its_own_frames_and_the_hook(tmp_path: Path) -> None:
    (tmp_path / "my_module.py").write_text(HOOKS)
    process = start(tmp_path, *SHORT, "+hooks.mine._target_=my_module.Bad")
    code, _, err = finish(process)
    assert code == 1
    assert 'raise RuntimeError("boom")' in err
    assert "in hook 'mine' (Bad) at after_train_iter, epoch 0, iter 0" in err
    assert "hydra" not in err
    (folder,) = (tmp_path / "outputs" / "hookexp").glob("*/*")
    summary = json.loads((folder / "summary.json").read_text())
    assert (summary["status"], summary["error"]) == ("failed", "RuntimeError: boom")
    assert "boom" in (folder / "hookexp.log").read_text()


def test_the_composed_config_needs_no_torch(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['hookexp', 'hooks=+ema', '--cfg', 'job']\n"
        "from hookexp.app import main\n"
        "main()\n"
        "assert 'torch' not in sys.modules and 'numpy' not in sys.modules\n"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    answer = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr
    assert "ema_type: ExponentialMovingAverage" in answer.stdout


def test_a_mistake_does_not_wait_for_torchs_compiler(tmp_path: Path) -> None:
    """Torch imports it for the first optimizer, and to switch determinism on or off."""
    code = (
        "import sys; sys.argv = ['hookexp', 'model.width=-3', 'hydra.run.dir=run']\n"
        "from hookexp.app import main\n"
        "try: main()\n"
        "except SystemExit: print('torch' in sys.modules, 'torch._inductor' in sys.modules)"
    )
    done = interpret(code, tmp_path)
    assert done.stdout.endswith("True False\n"), done.stderr


def test_an_interrupt_in_the_very_first_import_shows_no_traceback(tmp_path: Path) -> None:
    code = (
        "import builtins, os, signal\n"
        "real = builtins.__import__\n"
        "def begin(name, *others, **more):\n"
        "    if name == 'hookexp.signals': os.kill(os.getpid(), signal.SIGINT)\n"
        "    return real(name, *others, **more)\n"
        "builtins.__import__ = begin\n"
        "import hookexp.__main__"
    )
    done = interpret(code, tmp_path)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")


def test_a_process_that_ends_looks_for_no_garbage(tmp_path: Path) -> None:
    code = (
        "import atexit, gc, sys; sys.argv = ['hookexp', '--cfg', 'job']\n"
        "atexit.register(lambda: print(gc.get_freeze_count() > 10_000))\n"
        "from hookexp.__main__ import main; main()"
    )
    done = interpret(code, tmp_path)
    assert done.stdout.endswith("True\n"), done.stderr


def test_a_job_of_a_sweep_equals_the_same_command_alone(tmp_path: Path) -> None:
    code, out, err = finish(start(tmp_path, "-m", *SHORT, "hooks=+ema,-param_scheduler"))
    assert (code, err) == (0, "")
    assert "Runs in" in out
    alone = start(tmp_path, *SHORT, "hooks=-param_scheduler", "hydra.run.dir=alone")
    assert finish(alone)[0] == 0
    (job,) = (tmp_path / "outputs").glob("hookexp/multirun/*/*/1_*")
    expected, found = weights(tmp_path / "alone"), weights(job)
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[key], found[key]) for key in expected)


def test_a_sweep_issued_again_has_its_finished_runs_in_its_table(tmp_path: Path) -> None:
    words = ["-m", "hydra.sweep.dir=sweep", "resume=auto", "optimizer.lr=0.1,0.2", *SHORT]
    code, first, _ = finish(start(tmp_path, *words))
    assert code == 0
    configs = [*(tmp_path / "sweep").glob("*/.hydra/config.yaml")]
    assert len(configs) == 2
    for file in (tmp_path / "sweep").rglob("*"):
        os.utime(file, (0, 0))
    code, again, _ = finish(start(tmp_path, *words))
    assert code == 0 and again.count("this run is over") == 2
    assert again.partition("Runs in")[2] == first.partition("Runs in")[2]
    assert [file.stat().st_mtime for file in configs] == [0, 0]


def test_ctrl_c_leaves_with_130_and_no_traceback(tmp_path: Path) -> None:
    process = start(tmp_path, "trainer.max_epochs=100000", "hooks=none", "trainer.device=cpu")
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("outputs/hookexp/*/*/hookexp.log")):
        assert time.monotonic() < deadline, "the run did not begin"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    code, _, err = finish(process)
    assert code == 130
    assert "Traceback" not in err


@pytest.mark.parametrize("words", [["--help"], ["mode=explain"], ["--cfg", "job"]])
def test_a_reader_that_leaves_early_is_no_error(tmp_path, words):
    command = f"{sys.executable} -m hookexp {' '.join(words)} | head -1"
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
    done = subprocess.run(
        ["bash", "-o", "pipefail", "-c", command],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 1

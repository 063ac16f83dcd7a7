"""Sweeps: a folder per job, a table at the end, also when a job failed."""

from __future__ import annotations

import json
import random
import re
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from omegaconf import DictConfig, OmegaConf

import hookexp.build
from hookexp.compose.sweep_jobs import Job, best_of, read_jobs, stamps_in
from hookexp.compose.sweep_table import begin, end, table_of
from hookexp.errors import ConfigError
from hookexp.summary import ending


def job(number: int, value: float | None, rule: str = "greater", **overrides: str) -> Job:
    objective = {"name": "m", "value": value, "rule": rule, "epoch": 2, "iter": 40}
    summary = {"status": "finished", "objective": objective, "seconds": 75.4}
    return Job(number, Path(f"runs/{number}"), overrides, summary)


def test_the_best_follows_the_rule() -> None:
    greater = [job(0, 0.1), job(1, 0.3), job(2, None), job(3, float("nan"))]
    assert best_of(greater) is greater[1]
    less = [job(0, 0.1, "less"), job(1, 0.3, "less")]
    assert best_of(less) is less[0]
    assert best_of([job(0, None)]) is None


def test_the_table_shows_what_differs() -> None:
    head, rows = table_of([job(0, 0.5, lr="1", same="x"), job(1, 0.7, lr="2", same="x")])
    assert head == ["run", "lr", "status", "m", "reached", "time", "folder"]
    assert rows[0] == ["0", "1", "finished", "0.5", "epoch 2, iter 40", "1m 15s", "0"]
    assert rows[1][:4] == ["1*", "2", "finished", "0.7"]


def test_a_jobs_number_is_that_of_this_sweep(tmp_path: Path) -> None:
    for number, folder in enumerate(("1_b", "0_a")):
        (tmp_path / folder / ".hydra").mkdir(parents=True)
        (tmp_path / folder / ".hydra" / "overrides.yaml").write_text("[]\n")
        saved = OmegaConf.create({"hydra": {"job": {"num": number, "x": "${now:%Y}"}}})
        OmegaConf.save(saved, tmp_path / folder / ".hydra" / "hydra.yaml")
    assert [job.folder.name for job in read_jobs(tmp_path)] == ["1_b", "0_a"]


def test_the_table_of_a_search_shows_what_it_suggests() -> None:
    jobs = [job(n, None, batch_size=str(8 * n)) for n in range(3)]
    jobs[0].summary["suggestions"] = {"optimizer.lr": 0.0123456}
    jobs[1].summary["suggestions"] = {"optimizer.lr": 0.5}
    head, rows = table_of(jobs)
    assert head == ["run", "batch_size", "status", "found optimizer.lr", "time", "folder"]
    assert [row[3] for row in rows] == ["0.01235", "0.5", "-"]


def test_the_table_of_verifications_says_which_runs_resume_exactly(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import hookexp.verify

    def verify(cfg: DictConfig, work_dir: Path) -> None:
        if cfg.seed == 2:
            raise ConfigError("not verified: after a resume optimizer differs")

    monkeypatch.setattr(hookexp.verify, "verify_resume", verify)
    answer = cli("-m", "mode=verify_resume", "seed=1,2")
    table = answer.out[answer.out.index("Runs in") :].splitlines()
    assert [line.split()[:3] for line in table[1:]] == [
        ["run", "seed", "status"],
        ["0", "1", "verified"],
        ["1", "2", "failed"],
    ]
    assert "objective" not in table[1]


@pytest.mark.parametrize("fails", [False, True])
def test_a_verification_in_the_folder_of_a_run_leaves_its_summary_alone(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, fails: bool
) -> None:
    import hookexp.verify

    def verify(cfg: DictConfig, work_dir: Path) -> None:
        if fails:
            raise ConfigError("not verified")

    monkeypatch.setattr(hookexp.verify, "verify_resume", verify)
    Path("run").mkdir()
    (Path("run") / "last_checkpoint").touch()
    (Path("run") / "summary.json").write_text("{}")
    assert cli("mode=verify_resume", "hydra.run.dir=run").code == fails
    assert (Path("run") / "summary.json").read_text() == "{}"
    beside = json.loads((Path("run") / "summary_verify_resume.json").read_text())
    assert beside["status"] == ("failed" if fails else "verified")


@pytest.mark.parametrize(
    ("metric", "hint"),
    [
        ("zap", "hooks.checkpoint.save_best=zap hooks.checkpoint.rule=greater (or less)"),
        ("loss", 'to mark the best write metric_names = ("loss",) into its class'),
    ],
)
def test_a_metric_of_no_known_direction_is_shown_and_none_is_the_best(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], metric: str, hint: str
) -> None:
    begin(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    for number, value in enumerate((0.1, 0.35)):
        folder = tmp_path / f"{number}_x"
        (folder / ".hydra").mkdir(parents=True)
        (folder / ".hydra" / "overrides.yaml").write_text(f"- lr={number}\n")
        summary = {"status": "finished", "objective": None, "metrics": {metric: value, "b": 1.0}}
        (folder / "summary.json").write_text(json.dumps({**summary, "epoch": 2, "iter": 40}))
    end()
    out = capsys.readouterr().out
    assert re.search(rf"run +lr +status +{metric} +reached", out)
    assert re.search(r"^1 +1 +finished +0\.35 +epoch 2, iter 40", out, re.MULTILINE)
    assert "*" not in out
    assert hint in out


@pytest.mark.parametrize(("columns", "beside"), [(80, False), (140, True)])
def test_in_a_narrow_terminal_the_folders_stand_below(
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    columns: int,
    beside: bool,
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", str(columns))
    begin(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    names = [f"{number}_hooks-+early_stopping_optimizer.lr-0.{number}" for number in range(2)]
    for number, name in enumerate(names):
        (tmp_path / name / ".hydra").mkdir(parents=True)
        overrides = f"- hooks=+early_stopping\n- optimizer.lr=0.{number}\n"
        (tmp_path / name / ".hydra" / "overrides.yaml").write_text(overrides)
        (tmp_path / name / "summary.json").write_text(json.dumps(job(number, 0.5).summary))
    end()
    lines = capsys.readouterr().out.splitlines()
    assert [line[:3] for line in lines if names[1] in line] == (["│ 1"] if beside else ["1  "])
    assert len(lines) == (8 if beside else 10)


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [(59.94, "59.9s"), (59.96, "1m 00s"), (119.7, "2m 00s"), (3599.8, "60m 00s"), (None, "-")],
)
def test_a_time_is_rounded_before_it_is_told_in_minutes(seconds: float, shown: str) -> None:
    timed = job(0, 0.5)
    timed.summary["seconds"] = seconds
    _, rows = table_of([timed])
    assert rows[0][-2] == shown


@pytest.mark.parametrize(
    ("words", "is_final", "shown"),
    [(["resume=auto"], True, True), (["resume=auto"], False, False), ([], True, False)],
)
def test_an_old_result_counts_where_a_job_saw_that_its_run_was_over(
    tmp_path: Path, words: list[str], is_final: bool, shown: bool
) -> None:
    folder = tmp_path / "0_lr-1" / ".hydra"
    folder.mkdir(parents=True)
    (folder / "overrides.yaml").write_text(json.dumps(["lr=1", *words]))
    summary = tmp_path / "0_lr-1" / "summary.json"
    summary.write_text(json.dumps({"status": "finished", "is_final": is_final}))
    before = stamps_in(tmp_path)
    assert read_jobs(tmp_path, before) == []
    (folder / "overrides.yaml").write_text(json.dumps(["lr=1", *words]))
    (job,) = read_jobs(tmp_path, before)
    assert job.status == ("finished" if shown else "no result")


@pytest.mark.parametrize(
    ("status", "shown"), [("finished", "no result"), ("stopped", "no result"), ("failed", "failed")]
)
def test_a_job_that_was_killed_in_after_run_has_no_result(
    tmp_path: Path, status: str, shown: str
) -> None:
    folder = tmp_path / "0_lr-1"
    (folder / ".hydra").mkdir(parents=True)
    (folder / ".hydra" / "overrides.yaml").write_text("- lr=1\n")
    (folder / "summary.json").write_text(json.dumps({"status": status, "is_final": True}))
    with ending(folder):
        assert [job.status for job in read_jobs(tmp_path)] == [shown]
    assert [job.status for job in read_jobs(tmp_path)] == [status]


def test_a_sweep_that_is_repeated_at_once_shows_no_old_result(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(cfg: DictConfig, work_dir: Path) -> float:
        (work_dir / "last_checkpoint").touch()
        return 1.0

    stub(monkeypatch, run)
    words = ["-m", "hydra.sweep.dir=sweep", "optimizer.lr=0.1,0.01"]
    assert cli(*words).code == 0
    again = cli(*words, "optimizer.lr=0.1,0.01,0.001")
    assert again.code == 1
    assert again.err.count("holds a run already") == 2
    table = again.out[again.out.index("Runs in") :].splitlines()
    assert [line.split()[:2] for line in table[2:]] == [["2*", "finished"]]


def stub(monkeypatch: pytest.MonkeyPatch, run: Callable[[DictConfig, Path], float]) -> None:
    def build_runner(cfg: DictConfig, work_dir: Path) -> Any:
        def run_it(mode: str) -> Any:
            value = run(cfg, work_dir)
            objective = {"name": "m", "value": value, "rule": "less", "epoch": 1, "iter": 9}
            summary = {"status": "finished", "objective": objective, "seconds": 1.0}
            (work_dir / "summary.json").write_text(json.dumps(summary))
            return SimpleNamespace(objective_value=value, exit_code=0)

        return SimpleNamespace(run=run_it)

    monkeypatch.setattr(hookexp.build, "build_runner", build_runner)


def test_four_runs_in_four_folders(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, float]] = []

    def run(cfg: DictConfig, work_dir: Path) -> float:
        seen.append(("ema" in cfg.hooks, cfg.optimizer.lr))
        return float(cfg.optimizer.lr)

    stub(monkeypatch, run)
    answer = cli("-m", "hooks=+ema,+early_stopping", "optimizer.lr=0.1,0.01")
    assert answer.code == 0
    assert seen == [(True, 0.1), (True, 0.01), (False, 0.1), (False, 0.01)]
    (sweep,) = (answer.folder / "outputs/hookexp/multirun").glob("*/*")
    jobs = read_jobs(sweep)
    assert [j.folder.name for j in jobs] == [
        "0_hooks-+ema_optimizer.lr-0.1",
        "1_hooks-+ema_optimizer.lr-0.01",
        "2_hooks-+early_stopping_optimizer.lr-0.1",
        "3_hooks-+early_stopping_optimizer.lr-0.01",
    ]
    table = answer.out[answer.out.index("Runs in") :].splitlines()
    assert table[1].split() == [
        *("run", "hooks", "optimizer.lr", "status", "m", "reached", "time", "folder"),
    ]
    assert [line.split()[0] for line in table[2:]] == ["0", "1*", "2", "3"]


@pytest.mark.parametrize("error", [ConfigError("data.x: is wrong"), RuntimeError("boom")])
def test_the_table_comes_when_a_job_failed(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def run(cfg: DictConfig, work_dir: Path) -> float:
        if cfg.optimizer.lr == 0.1:
            raise error
        return 1.0

    stub(monkeypatch, run)
    answer = cli("-m", "optimizer.lr=0.1,0.01")
    assert answer.code == 1
    assert f"run 0 (optimizer.lr=0.1) failed: {_line(error)}\n" in answer.err
    assert ("Traceback" in answer.err) == isinstance(error, RuntimeError)
    table = answer.out[answer.out.index("Runs in") :].splitlines()
    assert table[2].split()[:3] == ["0", "0.1", "failed"]
    assert table[3].split()[:3] == ["1*", "0.01", "finished"]
    assert len(table) == 4  # The error has been told once.


def test_an_error_of_a_job_in_another_process_is_told_under_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    begin(OmegaConf.create({"hydra": {"sweep": {"dir": str(tmp_path)}}}))
    (tmp_path / "0_lr-1" / ".hydra").mkdir(parents=True)
    (tmp_path / "0_lr-1" / ".hydra" / "overrides.yaml").write_text(json.dumps(["lr=1"]))
    summary = {"status": "failed", "error": "lr: is wrong"}
    (tmp_path / "0_lr-1" / "summary.json").write_text(json.dumps(summary))
    end()
    assert capsys.readouterr().out.endswith("\nrun 0 failed: lr: is wrong\n")


def _line(error: Exception) -> str:
    return str(error) if isinstance(error, ConfigError) else f"{type(error).__name__}: {error}"


def test_sweeps_that_want_the_same_folder_get_two(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folders: list[Path] = []

    def run(cfg: DictConfig, work_dir: Path) -> float:
        folders.append(work_dir)
        return 1.0

    stub(monkeypatch, run)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "fixed.yaml").write_text(
        "# @package _global_\nhydra: {sweep: {dir: sweeps/it's}}\n"
    )
    for _ in range(2):
        assert cli("-cd", "conf", "-m", "experiment=fixed", "optimizer.lr=0.1,0.2").code == 0
    assert [f.parent.name for f in folders] == ["it's", "it's", "it's_1", "it's_1"]
    assert len(set(folders)) == 4


def test_a_job_leaves_the_process_as_it_found_it(
    cli: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[Any] = []

    def run(cfg: DictConfig, work_dir: Path) -> float:
        found.append((torch.rand(1).item(), random.random(), torch.get_float32_matmul_precision()))
        found[-1] += (torch.are_deterministic_algorithms_enabled(), torch.get_num_threads())
        torch.use_deterministic_algorithms(True)
        torch.set_float32_matmul_precision("high")
        torch.set_num_threads(1)
        monkeypatch.syspath_prepend(work_dir)
        return 1.0

    stub(monkeypatch, run)
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        assert cli("-m", "optimizer.lr=0.1,0.01,0.001").code == 0
    finally:
        torch.set_num_threads(threads)
    assert found[0] == found[1] == found[2]
    assert found[0][2:] == ("highest", False, 2)


def test_a_flag_may_stand_between_other_words(
    cli: Callable[..., Any], stub_runs: list[tuple[DictConfig, Path]]
) -> None:
    assert cli("name=mine", "-m", "optimizer.lr=0.1,0.2").code == 0
    assert [(cfg.name, cfg.optimizer.lr) for cfg, _ in stub_runs] == [("mine", 0.1), ("mine", 0.2)]
    assert "EMAHook" in cli("hooks=+ema", "--cfg", "job", "name=mine").out
    assert "hooks/+ema" in cli("--info", "defaults", "hooks=+ema").out

"""Each run gets a folder of its own, and none writes into another's."""

from __future__ import annotations

import errno
import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from omegaconf import DictConfig, OmegaConf

from hookexp.compose.folders import claim_run_folder, job_folder
from hookexp.errors import ConfigError

Runs = list[tuple[DictConfig, Path]]


def config(folder: Path, given: bool = False, **top: Any) -> DictConfig:
    overrides = [f"hydra.run.dir={folder}"] if given else []
    hydra = {"run": {"dir": str(folder)}, "overrides": {"hydra": overrides}}
    return OmegaConf.create({"name": "n", "mode": "train", "resume": None, "hydra": hydra, **top})


def claimed(folder: Path, given: bool = False, **top: Any) -> Path:
    cfg = config(folder, given, **top)
    claim_run_folder(cfg)
    return Path(cfg.hydra.run.dir)


def test_claims_in_the_same_second_get_different_folders(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        folders = list(pool.map(lambda _: claimed(tmp_path / "day" / "time"), range(16)))
    names = {folder.name for folder in folders}
    assert names == {"time", *(f"time_{n}" for n in range(1, 16))}
    assert all(folder.is_dir() for folder in folders)


def test_a_given_folder_is_used_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    assert claimed(tmp_path / "mine", given=True) == tmp_path / "mine"


@pytest.mark.parametrize("trace", ["scalars.jsonl", "last_checkpoint"])
def test_a_folder_with_a_run_is_refused_but_to_go_on_with_it(tmp_path: Path, trace: str) -> None:
    (tmp_path / trace).touch()
    with pytest.raises(ConfigError, match=f"holds a run already \\({trace}\\); .*resume=auto"):
        claimed(tmp_path, given=True)
    assert claimed(tmp_path, given=True, resume="auto") == tmp_path
    assert claimed(tmp_path, given=True, mode="test") == tmp_path
    with pytest.raises(ConfigError, match=rf"holds a run already \({trace}\); choose another"):
        claimed(tmp_path, given=True, mode="lr_find", resume="auto")


def test_a_folder_with_a_run_is_not_for_what_another_run_has_saved(tmp_path: Path) -> None:
    mine, other = tmp_path / "mine", tmp_path / "other"
    mine.mkdir()
    resumed = {"mode": "train", "given": True, "resume": str(other / "epoch_1.pth")}
    assert claimed(mine, **resumed) == mine
    (mine / "scalars.jsonl").touch()
    resumed["hooks"] = {"checkpoint": {"out_dir": str(tmp_path)}}
    with pytest.raises(ConfigError, match=r"holds a run already .*, which resume=.* is not of; "):
        claimed(mine, **resumed)
    out = {"checkpoint": {"out_dir": str(tmp_path / "out")}}
    saved_elsewhere = str(tmp_path / "out" / "mine" / "epoch_1.pth")
    for resume in (str(mine), str(mine / "epoch_1.pth"), saved_elsewhere):
        assert claimed(mine, given=True, resume=resume, hooks=out) == mine
    with pytest.raises(ConfigError, match="holds a run already"):
        claimed(mine, given=True, resume=str(mine / "sub" / "epoch_1.pth"))


def test_a_checkpoint_of_a_run_by_its_other_names(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "scalars.jsonl").touch()
    (tmp_path / "moved.pth").touch()
    (mine / "epoch_1.pth").symlink_to(tmp_path / "moved.pth")
    (tmp_path / "link").symlink_to(mine)
    for resume in ("~/mine/epoch_1.pth", "~/link", str(mine / "epoch_1.pth")):
        assert claimed(mine, given=True, resume=resume) == mine


@pytest.mark.parametrize("given", [True, False])
def test_a_folder_that_cannot_be_made(tmp_path: Path, given: bool) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ConfigError, match=r"^hydra.run.dir=.*: cannot be written \(.*\); choose"):
        claimed(tmp_path / "file" / "run", given)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match=r"cannot be written \(permission denied\)"):
        claimed(tmp_path / "run")


def name_of_job(number: int, overrides: str) -> str:
    return job_folder(number, overrides, "nowhere", None, [])


def test_a_jobs_folder_can_be_typed_and_is_not_too_long() -> None:
    words = "hooks=+ema/swa_optimizer.lr=0.1"
    assert name_of_job(3, words) == "3_hooks-+ema-swa_optimizer.lr-0.1"
    assert name_of_job(0, "") == "0"
    long = "_".join(f"hooks.checkpoint.key{n}=[1,2,{{a:'x y'}}]" for n in range(20))
    name = name_of_job(1, long)
    assert len(name) <= 96
    assert name == name_of_job(1, long) != name_of_job(1, f"{long}x")
    assert not set(name) & set("/=,[]{}' :")


def test_overrides_with_the_same_text_are_told_apart_when_a_sweep_is_issued_again(
    cli: Callable[..., Any], stub_runs: Runs
) -> None:
    for values in ("[a],[b]", "[a*],[a],[b]", "[b],[a],[a*]"):
        words = ("-m", "hydra.sweep.dir=sweep", "resume=auto", "hooks=+freeze")
        assert cli(*words, f"hooks.freeze.params={values}").code == 0
    names: dict[str, set[str]] = {}
    for cfg, folder in stub_runs:
        names.setdefault(str(cfg.hooks.freeze.params), set()).add(folder.name)
    assert len(names) == 3
    assert all(len(of_one) == 1 for of_one in names.values())
    assert len(set.union(*names.values())) == 3


def test_a_secret_hides_no_other_word_of_a_sweeps_folders(
    cli: Callable[..., Any], stub_runs: Runs
) -> None:
    words = ("-m", "hydra.sweep.dir=sweep", "resume=auto", "+data.api_key=hunter2")
    for values in ("0.1,0.2", "0.2,0.1"):
        assert cli(*words, f"optimizer.lr={values}").code == 0
    assert [folder.name for _, folder in stub_runs] == [
        "0_+data.api_key-_optimizer.lr-0.1",
        "1_+data.api_key-_optimizer.lr-0.2",
        "1_+data.api_key-_optimizer.lr-0.2",
        "0_+data.api_key-_optimizer.lr-0.1",
    ]


def test_a_sweep_in_another_order_finds_the_folders_of_the_same_overrides(
    cli: Callable[..., Any], stub_runs: Runs
) -> None:
    words = ("-m", "hydra.sweep.dir=sweep", "resume=auto")
    for values in ("0.1,0.2", "0.3,0.2,0.1"):
        assert cli(*words, f"optimizer.lr={values}").code == 0
    names = {float(cfg.optimizer.lr): folder.name for cfg, folder in stub_runs[2:]}
    assert names == {
        0.1: "0_optimizer.lr-0.1",
        0.2: "1_optimizer.lr-0.2",
        0.3: "0_optimizer.lr-0.3",
    }
    assert cli(*words[:2], "optimizer.lr=0.2,0.1").code == 0  # Nothing to go on with is asked for.
    assert [folder.name for _, folder in stub_runs[5:]] == [
        "0_optimizer.lr-0.2",
        "1_optimizer.lr-0.1",
    ]


def test_a_run_gets_hydras_folder_and_keeps_the_current_one(
    cli: Callable[..., Any], stub_runs: Runs
) -> None:
    first, second = (cli("name=mine") for _ in range(2))
    assert (first.code, second.code) == (0, 0)
    folders = [work_dir for _, work_dir in stub_runs]
    assert folders[0] != folders[1]
    for folder in folders:
        assert folder.parent.parent == first.folder / "outputs" / "mine"
        assert (folder / ".hydra" / "config.yaml").is_file()
    assert Path.cwd() == first.folder


def test_explain_makes_no_folder(cli: Callable[..., Any]) -> None:
    assert cli("mode=explain").code == 0
    assert list(Path.cwd().iterdir()) == []


def test_an_unwritable_folder_ends_in_one_line(cli: Callable[..., Any], stub_runs: Runs) -> None:
    Path("file").touch()
    answer = cli("hydra.run.dir=file/run")
    assert answer.code == 1
    assert answer.message.startswith("hookexp: hydra.run.dir=file/run: cannot be written")
    assert stub_runs == []


def test_where_no_file_finds_room_one_line_says_so_and_what_was_there_is_whole(
    cli: Callable[..., Any], stub_runs: Runs
) -> None:
    assert cli("hydra.run.dir=run").code == 0
    config = Path("run/.hydra/config.yaml")
    before = config.read_text()
    for words in (["hydra.run.dir=run", "resume=auto"], ["hydra.run.dir=another"]):
        command = [sys.executable, "-m", "hookexp", *words]
        run = subprocess.run(
            command,
            capture_output=True,
            text=True,
            preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0)),
        )
        (line,) = run.stderr.splitlines()
        assert run.returncode == 1
        assert re.search(r"hydra.run.dir=\S+: cannot be written \(file too large\)", line)
    assert config.read_text() == before


@pytest.mark.parametrize("limit", [0, 1000])
def test_a_sweep_where_no_file_finds_room_ends_in_one_line(tmp_path: Path, limit: int) -> None:
    run = subprocess.run(
        [sys.executable, "-m", "hookexp", "-m", "hydra.sweep.dir=sweep", "seed=1,2"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
    )
    assert (run.returncode, run.stdout) == (1, "")
    assert run.stderr == (
        f"hookexp: hydra.sweep.dir={tmp_path}/sweep: cannot be written (file too large); choose "
        "another folder with hydra.sweep.dir=FOLDER\n"
    )
    assert not (tmp_path / "sweep" / "multirun.yaml").exists()  # It would have secrets in it.


def test_a_disk_that_fills_up_in_a_sweep_is_told_by_each_job_without_a_traceback(
    cli: Callable[..., Any], stub_runs: Runs, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, *arguments: Any, **more: Any) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    answer = cli("-m", "hydra.sweep.dir=sweep", "seed=1,2,nothing")
    assert answer.code == 1
    *full_disk, mistake = answer.err.splitlines()
    assert [line.partition(": ")[2] for line in full_disk] == [
        f"{Path.cwd()}/sweep/{folder}: cannot be written (no space left on device); choose another "
        "folder with hydra.sweep.dir=FOLDER"
        for folder in ("0_seed-1", "1_seed-2")
    ]
    assert "seed=nothing: use a whole number" in mistake
    assert not Path("sweep/multirun.yaml").exists()
    assert stub_runs == []


def test_a_sweep_over_finished_runs_leaves_them_alone(
    cli: Callable[..., Any], stub_runs: Runs
) -> None:
    job = Path("sweep/0_optimizer.lr-0.1")
    job.mkdir(parents=True)
    (job / "last_checkpoint").touch()
    (job / "summary.json").write_text("{}")
    answer = cli("-m", "hydra.sweep.dir=sweep", "optimizer.lr=0.1,0.2")
    assert answer.code == 1
    assert "0_optimizer.lr-0.1: holds a run already (last_checkpoint)" in answer.err
    assert "hydra.run.dir" not in answer.err
    assert (job / "summary.json").read_text() == "{}"
    assert [work_dir.name for _, work_dir in stub_runs] == ["1_optimizer.lr-0.2"]

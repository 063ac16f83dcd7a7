"""Runs that are killed with SIGKILL, and continued, are the run that was not."""

from __future__ import annotations

import json
import os
import random
import signal

import pytest
from killing import (
    curves,
    differences,
    finish,
    kill_at,
    kill_in_the_middle,
    newest_iteration,
    outcome,
    start,
    torn_files,
)

from hookexp.hook import Hook

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")

SMALL = [
    "hooks.logger.interval=5",
    "trainer.device=cpu",
    "model.width=4",
    "sinks=-console",
]
RECIPE = [
    *SMALL,
    "hooks=+ema+early_stopping",
    "hooks/optimizer=accumulate",
    "hooks.optimizer.cumulative_iters=3",
    "hooks.early_stopping.patience=50",
    "hooks.checkpoint.by_epoch=false",
    "hooks.checkpoint.interval=1",
    "hooks.checkpoint.max_keep_ckpts=2",
    "trainer.max_epochs=2",
]
SHORT = [*SMALL, "trainer.max_epochs=2", "trainer.limit_train_batches=5"]


def test_six_kills(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert finish(start(f"hydra.run.dir={whole}", *RECIPE)) == 0
    rng = random.Random(0)
    command = [f"hydra.run.dir={cut}", "resume=auto", *RECIPE]
    kills = []
    for _ in range(6):
        ended = kill_in_the_middle(start(*command), cut, rng.uniform(0.0, 0.06))
        assert torn_files(cut) == []
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
        kills.append(newest_iteration(cut))
    assert len(kills) >= 3 and kills == sorted(kills)
    assert finish(start(*command)) == 0
    assert differences(whole, cut) == []
    assert curves(whole) == curves(cut)


def test_a_run_begun_without_workers_goes_on_with_two_of_them_from_a_validation(tmp_path):
    recipe = [
        *RECIPE,
        "data.train._target_=killing.CroppedDigits",
        "data.batch_size=32",
        "hooks.checkpoint.interval=2",
        "param_scheduler=plateau",
        "trainer.limit_train_batches=7",
    ]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert finish(start(f"hydra.run.dir={whole}", *recipe)) == 0
    command = [f"hydra.run.dir={cut}", "resume=auto", *recipe]
    for kill in (kill_at(5), kill_at(7, val_batch=1)):
        assert finish(start(*command, *kill)) == -signal.SIGKILL
    assert finish(start(*command, "data.num_workers=2")) == 0
    assert differences(whole, cut) == []


def test_a_run_killed_before_its_first_checkpoint_leaves_no_rows_behind(tmp_path):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    recipe = [*SHORT, "hooks.logger.interval=2"]
    assert finish(start(f"hydra.run.dir={whole}", *recipe)) == 0
    command = [f"hydra.run.dir={cut}", "resume=auto", *recipe]
    assert finish(start(*command, *kill_at(5))) == -signal.SIGKILL
    assert (cut / "scalars.jsonl").stat().st_size > 0
    assert not (cut / "last_checkpoint").exists()
    assert finish(start(*command)) == 0
    assert differences(whole, cut) == []
    assert curves(whole) == curves(cut)


def test_a_finished_run_is_left_as_it_is_and_can_be_extended(tmp_path):
    longer, run = tmp_path / "longer", tmp_path / "run"
    command = [f"hydra.run.dir={run}", "resume=auto", *SHORT]
    assert finish(start(*command)) == 0

    def contents():
        files = [path for path in run.rglob("*") if path.is_file()]
        return {p: p.read_bytes() for p in files if p.suffix != ".log" and p.name != ".lock"}

    before = contents()
    assert finish(start(*command)) == 0
    assert contents() == before
    log = (run / "hookexp.log").read_text()
    assert "this run is over" in log and "trained with: " not in log

    assert finish(start(*command, "seed=3", "hooks=-iter_timer+grad_norm")) == 0
    assert contents() == before
    told = "trained with: no hooks.iter_timer, hooks.grad_norm (was not there), seed=3 (was 0); "
    assert told in (run / "hookexp.log").read_text()

    assert finish(start(*command, "trainer.max_epochs=4")) == 0
    assert finish(start(f"hydra.run.dir={longer}", *SHORT, "trainer.max_epochs=4")) == 0
    lrs = [
        [(row["step"], row.get("lr")) for row in outcome(folder)[1] if row["step"] > 10]
        for folder in (longer, run)
    ]
    assert lrs[0] == lrs[1] and len(lrs[0]) == 4
    assert json.loads((run / "summary.json").read_text())["epoch"] == 4


class TermAt(Hook):
    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            os.kill(os.getpid(), signal.SIGTERM)


def test_logs_that_are_moved_away_lose_no_rows(tmp_path):
    """Of a run that was stopped, and of one that had ended and is extended."""
    words = [*SHORT, "hooks.logger.interval=2", "param_scheduler=none", "resume=auto"]
    words += [f"hooks.logger.out_dir={tmp_path / 'logs'}", "hooks.logger.keep_local=false"]
    stop = ["+hooks.stop._target_=test_kill.TermAt", "+hooks.stop.iteration=7"]
    assert finish(start(f"hydra.run.dir={tmp_path / 'whole'}", *words)) == 0
    command = [f"hydra.run.dir={tmp_path / 'cut'}", *words]
    assert finish(start(*command, "trainer.max_epochs=1")) == 0
    assert not (tmp_path / "cut" / "scalars.jsonl").exists()
    assert finish(start(*command, *stop)) == 143
    assert finish(start(*command)) == 0
    steps = [
        [json.loads(row)["step"] for row in (folder / "scalars.jsonl").read_text().splitlines()]
        for folder in ((tmp_path / "logs" / name) for name in ("whole", "cut"))
    ]
    assert steps[0] == steps[1] == [2, 4, 5, 7, 9, 10]


def test_a_sweep_issued_again_skips_goes_on_and_begins(tmp_path):
    words = ["resume=auto", *SHORT, "optimizer.lr=0.1,0.05,0.02"]
    words += ["hooks.checkpoint.by_epoch=false", "hooks.checkpoint.interval=1"]
    assert finish(start("-m", f"hydra.sweep.dir={tmp_path / 'whole'}", *words)) == 0
    command = ["-m", f"hydra.sweep.dir={tmp_path / 'cut'}", *words]
    names = sorted(path.name for path in (tmp_path / "whole").iterdir() if path.is_dir())
    jobs = [tmp_path / "cut" / name for name in names]
    assert kill_in_the_middle(start(*command), jobs[1], 0.01) == -signal.SIGKILL
    assert not (jobs[1] / "summary.json").exists() and not jobs[2].exists()
    summary = jobs[0] / "summary.json"
    before = summary.stat().st_mtime_ns
    assert finish(start(*command)) == 0
    assert summary.stat().st_mtime_ns == before
    assert "resumed after" in (jobs[1] / "hookexp.log").read_text()
    for job in jobs:
        assert differences(tmp_path / "whole" / job.name, job) == []

"""Runs that are killed with SIGKILL at random times, and continued, are the run that was not."""

from __future__ import annotations

import random

import pytest
from killing import finish, kill_in_the_middle, newest_iteration, outcome, start, torn_files
from test_resume import assert_equal

RECIPE = [
    "hooks=+ema+early_stopping",
    "hooks/optimizer=accumulate",
    "hooks.optimizer.cumulative_iters=3",
    "hooks.early_stopping.patience=50",
    "hooks.checkpoint.by_epoch=false",
    "hooks.checkpoint.interval=1",
    "hooks.checkpoint.max_keep_ckpts=2",
    "hooks.logger.interval=5",
    "trainer.device=cpu",
    "trainer.max_epochs=2",
    "model.width=4",
    "sinks=-console",
]


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
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
        assert ended == -9
        kills.append(newest_iteration(cut))
    assert len(kills) >= 3 and kills == sorted(kills)
    assert finish(start(*command)) == 0
    assert_equal(outcome(whole), outcome(cut))

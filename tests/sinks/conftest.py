from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., SimpleNamespace]:
    """Makes what a sink sees of a runner: a run of 2 epochs of 10 batches, or what is passed."""

    def make(**attributes: object) -> SimpleNamespace:
        run = {
            "work_dir": tmp_path,
            "max_epochs": 2,
            "max_iters": None,
            "iter": 0,
            "by_epoch": True,
            "logger": logging.getLogger("hookexp"),
            "rank": 0,
            "experiment_name": "digits",
            "num_batches_per_epoch": 10,
        }
        return SimpleNamespace(**{**run, **attributes})

    return make

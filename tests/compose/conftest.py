"""`cli`: the command line in this process, from an empty folder, with or without real runs."""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

import hookexp.build
from hookexp import app
from hookexp.compose.named_sets import SetSearchPath, SetSource


@dataclass
class Answer:
    """What a command line led to."""

    code: int
    out: str
    err: str
    folder: Path

    @property
    def message(self) -> str:
        """The one line on stderr."""
        lines = self.err.strip().splitlines()
        assert len(lines) == 1, self.err
        return lines[0]


Cli = Callable[..., Answer]


@pytest.fixture
def cli(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Iterator[Cli]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)

    def type_in(*words: str) -> Answer:
        monkeypatch.setattr(sys, "argv", ["hookexp", *words])
        capsys.readouterr()
        code = 0
        try:
            app.main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err, tmp_path)

    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    yield type_in
    SetSearchPath.config_dir = None
    SetSource.typed = ""
    HydraConfig.instance().cfg = None
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def stub_runs(monkeypatch: pytest.MonkeyPatch) -> list[tuple[DictConfig, Path]]:
    """Runs that do nothing but be noted; the objective is the learning rate."""
    runs: list[tuple[DictConfig, Path]] = []

    def build_runner(cfg: DictConfig, work_dir: Path) -> Any:
        runs.append((cfg, work_dir))
        value = float(cfg.optimizer.lr)
        return SimpleNamespace(run=lambda mode: SimpleNamespace(objective_value=value, exit_code=0))

    monkeypatch.setattr(hookexp.build, "build_runner", build_runner)
    return runs

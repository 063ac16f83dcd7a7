"""What the command line tells about itself: help, composed config, completion."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import hookexp


def test_help_names_groups_hooks_and_examples(cli: Callable[..., Any]) -> None:
    answer = cli("--help")
    assert answer.code == 0
    lines = answer.out.splitlines()
    assert any(line.split() == ["optimizer", "adam,", "adamw,", "sgd"] for line in lines)
    assert any(line.startswith("  * checkpoint ") and "(also: best)" in line for line in lines)
    assert any(line.startswith("    ema ") for line in lines)
    assert "hookexp hooks=+ema/swa" in answer.out
    assert 'eval "$(hookexp -sc install=bash)"' in answer.out
    assert max(map(len, lines)) <= 90


def test_the_version_is_that_of_this_project(cli: Callable[..., Any]) -> None:
    answer = cli("--version")
    assert answer.code == 0
    assert answer.out.startswith(f"hookexp {hookexp.__version__} (torch ")


def test_help_knows_hooks_of_ones_own(cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "conf" / "hooks").mkdir(parents=True)
    (tmp_path / "conf" / "hooks" / "mine.yaml").write_text("# costs $5\n_target_: a.B\n")
    answer = cli("-cd", "conf", "--help")
    assert "mine" in answer.out
    assert "costs $5" in answer.out


@pytest.mark.parametrize("flags", [["--cfg", "job"], ["--cfg", "hydra"], ["--info", "defaults"]])
def test_hydras_own_views_work(cli: Callable[..., Any], flags: list[str]) -> None:
    answer = cli("hooks=+ema", *flags)
    assert answer.code == 0
    assert answer.out


@pytest.mark.parametrize(
    ("line", "offered"),
    [
        ("hooks=+", "hooks=+ema"),
        ("hooks=+e", "hooks=+early_stopping"),
        ("hooks=-", "hooks=-iter_timer"),
        ("hooks=+ema-iter", "hooks=+ema-iter_timer"),
        ("hooks/ema=", "hooks/ema=swa"),
        ("hooks=+ema hooks.ema.mom", "hooks.ema.momentum="),
        ("sinks=+w", "sinks=+wandb"),
        ("optimizer=ad", "optimizer=adamw"),
        ("--config-dir conf hooks=+mi", "hooks=+mine"),
    ],
)
def test_completion(
    cli: Callable[..., Any],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    line: str,
    offered: str,
) -> None:
    (tmp_path / "conf" / "hooks" / "mine").mkdir(parents=True)
    (tmp_path / "conf" / "hooks" / "mine" / "default.yaml").write_text("_target_: a.B\n")
    monkeypatch.setenv("COMP_LINE", f"hookexp {line}")
    answer = cli("-sc", "query=bash")
    words = answer.out.split()
    assert offered in words
    typed = line.split(" ")[-1]
    assert all(word.startswith(typed) for word in words)

"""`mode=explain`: who is called where, in which order, and why."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any


def rows_at(out: str, point: str) -> list[list[str]]:
    """The rows below a mount point, split where two blanks are."""
    lines = out.splitlines()
    start = lines.index(point) + 1
    rows = []
    for line in lines[start:]:
        if not line.startswith("  "):
            break
        rows.append([cell.strip() for cell in line.split("  ") if cell.strip()])
    return rows


def test_order_priorities_and_origins(cli: Callable[..., Any], tmp_path: Path) -> None:
    (tmp_path / "my_hooks.py").write_text(
        "from hookexp import Hook\n\n\nclass Late(Hook):\n    priority = 95\n\n"
        "    def after_train_epoch(self, runner):\n        pass\n"
    )
    answer = cli(
        "mode=explain",
        "hooks=+ema/swa+early_stopping",
        "hooks/checkpoint=best",
        "hooks.checkpoint.priority=LOW",
        "+hooks.mine._target_=my_hooks.Late",
    )
    assert answer.code == 0
    assert rows_at(answer.out, "after_train_epoch") == [
        ["60 BELOW_NORMAL", "logger", "LoggerHook", "class", "hooks=default"],
        ["70 LOW", "param_scheduler", "ParamSchedulerHook", "class", "hooks=default"],
        ["70 LOW", "checkpoint", "CheckpointHook", "command line", "hooks/checkpoint=best"],
        ["95", "mine", "Late", "class", "+hooks.mine._target_"],
    ]
    ema = rows_at(answer.out, "after_optim_step")[0]
    assert ema[1:] == ["ema", "EMAHook", "class", "hooks=+ema/swa"]
    assert "nobody listens to: before_optim_step" in answer.out
    assert answer.out.rstrip().endswith("\n  ema is called before checkpoint")
    assert max(map(len, answer.out.splitlines())) <= 100


def test_what_an_experiment_put_there(cli: Callable[..., Any], tmp_path: Path) -> None:
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "mine.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /hooks/ema: default\n"
        "  - override /hooks/checkpoint: best\nhooks: {ema: {priority: 41}}\n"
    )
    answer = cli("-cd", "conf", "mode=explain", "experiment=mine", "hooks=-iter_timer")
    assert answer.code == 0
    ema = rows_at(answer.out, "before_val_epoch")[0]
    assert ema == ["41", "ema", "EMAHook", "config", "experiment=mine"]
    checkpoint = rows_at(answer.out, "after_train_epoch")[-1]
    assert checkpoint[-1] == "hooks=default, experiment=mine"
    assert "IterTimerHook" not in answer.out


def test_no_hooks_are_explained_too(cli: Callable[..., Any]) -> None:
    answer = cli("mode=explain", "hooks=none")
    assert answer.code == 0
    assert "nobody listens to: before_run, " in answer.out

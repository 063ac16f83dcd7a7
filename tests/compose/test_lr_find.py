"""`mode=lr_find` makes a curve and trains nothing."""

from __future__ import annotations

import csv
import json

import pytest

from hookexp.compose.lr_find import without_the_search


def test_a_curve_and_a_suggestion(cli):
    words = ["mode=lr_find", "trainer.device=cpu", "optimizer.lr=1", "hooks=+early_stopping"]
    answer = cli(*words)
    assert answer.code == 0, answer.err
    (folder,) = [p.parent for p in answer.folder.rglob("lr_finder.csv")]
    with (folder / "lr_finder.csv").open() as file:
        rows = list(csv.DictReader(file))
    lrs = [float(row["lr"]) for row in rows]
    assert lrs[0] == pytest.approx(1e-6) and lrs == sorted(lrs) and len(lrs) > 50
    assert (folder / "lr_finder.png").read_bytes().startswith(b"\x89PNG")
    assert not list(folder.glob("*.pth"))
    (name, lr), *others = json.loads((folder / "summary.json").read_text())["suggestions"].items()
    assert name == "optimizer.lr" and 1e-6 < lr < 10 and not others
    # What was typed stays, except the mode and the value that the search has found.
    command = f"train it: python -m hookexp trainer.device=cpu hooks=+early_stopping {name}={lr:g}"
    assert command in answer.out.splitlines()


@pytest.mark.parametrize(
    "words",
    [["mode=lr_find", "hooks=+lr_finder"], ["mode=lr_find"], ["mode=lr_find", "hooks=+ema"]],
)
def test_parameters_of_ones_own_are_kept(cli, words):
    answer = cli(*words, "hooks.lr_finder.num_iters=12", "trainer.device=cpu")
    assert answer.code == 0, answer.err
    (curve,) = answer.folder.rglob("lr_finder.csv")
    assert len(curve.read_text().splitlines()) <= 13


def test_an_experiment_that_adds_the_finder_itself(cli, tmp_path):
    folder = tmp_path / "conf" / "experiment"
    folder.mkdir(parents=True)
    (folder / "search.yaml").write_text(
        "# @package _global_\ndefaults:\n  - /hooks/lr_finder: default\n"
        "hooks:\n  lr_finder:\n    end_lr: 0.5\n"
    )
    words = ["--config-dir", str(tmp_path / "conf"), "experiment=search", "mode=lr_find"]
    answer = cli(*words, "hooks.lr_finder.num_iters=12", "trainer.device=cpu")
    assert answer.code == 0, answer.err
    (curve,) = answer.folder.rglob("lr_finder.csv")
    lrs = [float(line.split(",")[0]) for line in curve.read_text().splitlines()[1:]]
    assert len(lrs) == 12 and max(lrs) <= 0.5


@pytest.mark.parametrize(
    ("word", "left"),
    [
        ("mode=lr_find", ""),
        ("hooks=+lr_finder-param_scheduler-checkpoint", ""),
        ("hooks=+ema+lr_finder/default-checkpoint-logger", "hooks=+ema-logger"),
        ("hooks=+ema-checkpoint", "hooks=+ema-checkpoint"),
        ("+hooks/lr_finder=default", ""),
        ("hooks.lr_finder.num_iters=30", ""),
        ("optimizer.lr=1", "optimizer.lr=1"),
    ],
)
def test_what_is_left_for_the_training(word, left):
    assert without_the_search(word) == left

"""The grammar of `hooks=+a-b` on the real configs, and on configs of a user's own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hydra import compose

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.compose.conf_dir import with_hydra
from hookexp.compose.named_sets import SetSearchPath
from hookexp.compose.set_edits import SetEdits
from hookexp.errors import ConfigError

DEFAULT = [
    "runtime_info",
    "optimizer",
    "iter_timer",
    "sampler_seed",
    "logger",
    "param_scheduler",
    "checkpoint",
]


def hooks_of(*overrides: str) -> dict[str, Any]:
    with with_hydra():
        cfg = compose("config", overrides=list(overrides))
    return {str(name): node for name, node in (cfg.hooks or {}).items() if node is not None}


@pytest.mark.parametrize(
    ("overrides", "names"),
    [
        ([], DEFAULT),
        (["hooks=+ema"], [*DEFAULT, "ema"]),
        (
            ["hooks=+ema+early_stopping-iter_timer"],
            [n for n in DEFAULT if n != "iter_timer"] + ["ema", "early_stopping"],
        ),
        (["hooks=-logger"], [n for n in DEFAULT if n != "logger"]),
        (["hooks=none"], []),
        (["hooks=none", "+hooks/ema=default"], ["ema"]),
        (["hooks=none", "experiment=charlm"], []),
        (["~hooks/iter_timer"], [n for n in DEFAULT if n != "iter_timer"]),
        (["+hooks/ema=default"], [*DEFAULT, "ema"]),
        (["hooks=+ema", "+hooks.mine._target_=a.B"], [*DEFAULT, "ema", "mine"]),
        (["hooks/optimizer=none"], [n for n in DEFAULT if n != "optimizer"]),
        (["hooks=-checkpoint", "experiment=charlm"], [n for n in DEFAULT if n != "checkpoint"]
         + ["text_samples"]),
        (["hooks=-text_samples", "experiment=charlm"], DEFAULT),
    ],
)  # fmt: skip
def test_who_is_on(overrides: list[str], names: list[str]) -> None:
    assert list(hooks_of(*overrides)) == names


@pytest.mark.parametrize(
    "overrides", [["hooks=+ema/swa"], ["hooks=+ema", "hooks/ema=swa"], ["+hooks/ema=swa"]]
)
def test_another_option_of_a_hook(overrides: list[str]) -> None:
    assert hooks_of(*overrides)["ema"].ema_type == "StochasticWeightAverage"


def test_values_beside_an_option() -> None:
    checkpoint = hooks_of("hooks/checkpoint=best", "hooks.checkpoint.interval=5")["checkpoint"]
    assert (checkpoint.save_best, checkpoint.interval) == ("auto", 5)


def test_sinks_have_the_same_grammar() -> None:
    with with_hydra():
        sinks = compose("config", overrides=["sinks=+wandb-tensorboard"]).sinks
    assert [n for n, node in sinks.items() if node is not None] == ["console", "jsonl", "wandb"]


@pytest.mark.parametrize(
    ("file", "content", "where"),
    [
        ("hooks/mine/default.yaml", "_target_: my.Hook\n", "a folder"),
        ("hooks/mine.yaml", "_target_: my.Hook\n", "one file"),
        ("hooks/mine.yaml", "mine:\n  _target_: my.Hook\n", "one file with the key"),
    ],
)
def test_a_hook_in_a_folder_of_ones_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, file: str, content: str, where: str
) -> None:
    (tmp_path / file).parent.mkdir(parents=True)
    (tmp_path / file).write_text(content)
    monkeypatch.setattr(SetSearchPath, "config_dir", tmp_path)
    hooks = hooks_of("hooks=+mine+ema")
    assert hooks["mine"] == {"_target_": "my.Hook"}, where
    assert list(hooks) == [*DEFAULT, "mine", "ema"]


@pytest.mark.parametrize("content", ["_target_: my.Hook\n", "mine:\n  _target_: my.Hook\n"])
def test_an_experiment_takes_a_hook_of_one_file_like_any_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str
) -> None:
    for name, text in {
        "hooks/mine": content,
        "experiment/adds": "defaults:\n  - /hooks/mine: default\n",
        "experiment/sets": "defaults:\n  - /hooks/mine: default\nhooks: {mine: {factor: 3}}\n",
    }.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / f"{name}.yaml").write_text(f"# @package _global_\n{text}")
    monkeypatch.setattr(SetSearchPath, "config_dir", tmp_path)
    assert hooks_of("experiment=adds")["mine"] == {"_target_": "my.Hook"}
    assert hooks_of("experiment=sets")["mine"] == {"_target_": "my.Hook", "factor": 3}
    assert hooks_of("+hooks/mine=default")["mine"] == {"_target_": "my.Hook"}
    assert "mine" not in hooks_of("experiment=adds", "hooks=-mine")


@pytest.mark.parametrize("option", ["+", "+ema+", "+ema/", "+ema-ema", "+ema+ema/swa", "-ema/swa"])
def test_edits_that_say_nothing_clear(option: str) -> None:
    with pytest.raises(ConfigError, match="hooks="):
        SetEdits.parse("hooks", option)


def test_every_yaml_of_a_hook_shows_all_parameters_of_its_class() -> None:
    import inspect
    from importlib import import_module

    for name, node in hooks_of("hooks=+ema+early_stopping").items():
        module, _, cls = node._target_.rpartition(".")
        parameters = inspect.signature(getattr(import_module(module), cls)).parameters
        assert set(node) - {"_target_"} == {*parameters, "priority"}, name
        assert node.priority is None


def test_a_primary_config_that_cannot_take_away_is_told_so(
    cli: Callable[..., Any], tmp_path: Path
) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "own.yaml").write_text(
        "defaults: [hooks: default, sinks: none, optimizer: sgd, _self_,\n"
        "           override hydra/job_logging: none]\n"
        "name: x\nmode: train\nresume: null\n"
    )
    answer = cli("-cd", "conf", "-cn", "own", "hooks=-logger")
    assert answer.code == 1
    assert answer.message.startswith("hookexp: hooks=-logger: logger is still on; ")

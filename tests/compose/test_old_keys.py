"""A `_target_` in the place of another, in a config of the user's or typed."""

from __future__ import annotations

import pytest
from hydra import compose as compose_alone
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from hookexp.compose.conf_dir import with_hydra
from hookexp.compose.old_keys import drop_keys_of_old_targets

MODULE = """
from hookexp import Hook

class Net: ...

class Task:
    def __init__(self, smooth=0.0): ...

class Say(Hook):
    def __init__(self, word="hi"):
        self.word = word
    def before_run(self, runner): ...
"""
TARGETS = """
# @package _global_
task: {_target_: mine.Task, smooth: 0.1}
hooks: {logger: {_target_: mine.Say}}
optimizer: {_target_: torch.optim.RMSprop, param_groups: {no_decay: true}}
"""


@pytest.fixture
def compose(cli, stub_runs, tmp_path):
    """The config that a run is built from, with some experiments in the current folder."""
    (tmp_path / "mine.py").write_text(MODULE)
    (tmp_path / "experiment").mkdir()

    def type_in(*words, **experiments):
        for name, text in experiments.items():
            (tmp_path / "experiment" / f"{name}.yaml").write_text(text.lstrip())
        answer = cli("--config-dir", ".", *words)
        assert answer.code == 0, answer.err
        return stub_runs[-1][0]

    return type_in


def test_an_experiment_with_other_targets_has_not_the_keys_of_those_before(compose):
    cfg = compose("experiment=own", own=TARGETS)
    assert cfg.task == {"_target_": "mine.Task", "smooth": 0.1}
    assert cfg.hooks.logger == {"_target_": "mine.Say", "priority": None}
    assert "nesterov" not in cfg.optimizer and cfg.optimizer.lr == 0.03
    assert cfg.optimizer.param_groups == {"no_decay": True, "layer_decay": None, "rules": []}


def test_a_wrong_key_that_is_given_with_a_target_or_after_it_stays_to_be_told(compose):
    given = "# @package _global_\nmodel: {_target_: mine.Net, depht: 3}"
    assert compose("experiment=own", own=given).model == {"_target_": "mine.Net", "depht": 3}
    cfg = compose("experiment=own", "model.width=4", own=given)
    assert set(cfg.model) == {"_target_", "depht", "width"}


def test_what_an_experiment_gives_a_target_that_a_typed_one_replaces_goes_too(compose):
    given = "# @package _global_\nmodel: {_target_: mine.Other, depth: 3}"
    assert compose("experiment=own", "model._target_=mine.Net", own=given).model == {
        "_target_": "mine.Net"
    }


def test_an_experiment_upon_another_keeps_what_that_one_gives(compose):
    base = "# @package _global_\ntask: {_target_: mine.Task, smooth: 0.1}"
    top = "# @package _global_\ndefaults: [base, _self_]\ntask: {extra: 1}"
    cfg = compose("experiment=top", base=base, top=top)
    assert cfg.task == {"_target_": "mine.Task", "smooth": 0.1, "extra": 1}


def test_explain_shows_hooks_of_other_targets(cli, compose, tmp_path):
    compose("experiment=own", own=TARGETS)
    answer = cli("--config-dir", ".", "experiment=own", "mode=explain")
    assert (answer.code, answer.err) == (0, "")
    assert "Say" in answer.out


def test_a_config_composed_after_a_run_of_the_same_process(cli):
    assert cli("mode=explain").code == 0
    GlobalHydra.instance().clear()
    words = ["optimizer._target_=torch.optim.RMSprop"]
    with with_hydra():
        cfg = compose_alone("config", overrides=words)
    drop_keys_of_old_targets(cfg, words)
    assert "nesterov" not in cfg.optimizer


def test_rules_for_parameter_groups_hold_for_a_typed_optimizer(compose):
    cfg = compose("optimizer._target_=torch.optim.RMSprop", "optimizer.param_groups.no_decay=true")
    assert OmegaConf.select(cfg, "optimizer.param_groups.no_decay") is True

"""Parameter groups against the groups written out by hand, and in a run from the real config."""

from __future__ import annotations

import math

import pytest
import torch
from fakes import TinyModel
from hydra import compose
from torch import nn

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_runner
from hookexp.compose.conf_dir import with_hydra
from hookexp.errors import ConfigError
from hookexp.optim.param_groups import param_groups, select

SGD = {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.01}


class Deep(nn.Module):
    def __init__(self):
        super().__init__()
        self.position = nn.Parameter(torch.zeros(2, 4))
        self.stem = nn.Linear(4, 4)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(4, 4), nn.ReLU()) for _ in range(2))
        self.head = nn.Linear(4, 1)


def named(model, groups):
    """The groups with names in place of parameters."""
    names = {id(p): name for name, p in model.named_parameters()}
    return [{**g, "params": [names[id(p)] for p in g["params"]]} for g in groups]


def grouped(model, **options):
    names = [name for name, _ in model.named_parameters()]
    return named(model, param_groups(model, names, options, SGD))


def test_biases_and_norms_do_not_decay():
    assert grouped(TinyModel(), no_decay=True) == [
        {"params": ["inner.weight", "outer.weight"]},
        {
            "params": ["inner.bias", "norm.weight", "norm.bias", "outer.bias"],
            "weight_decay": 0.0,
        },
    ]


def test_layers_learn_more_slowly_the_earlier_they_are():
    model = Deep()
    lrs = {
        name: group.get("lr", 0.1)
        for group in grouped(model, layer_decay=0.5)
        for name in group["params"]
    }
    assert lrs == {
        "position": 0.0125,
        "stem.weight": 0.0125,
        "stem.bias": 0.0125,
        "blocks.0.0.weight": 0.025,
        "blocks.0.0.bias": 0.025,
        "blocks.1.0.weight": 0.05,
        "blocks.1.0.bias": 0.05,
        "head.weight": 0.1,
        "head.bias": 0.1,
    }
    assert grouped(model, layer_decay=0.5)[0]["params"] == ["head.weight", "head.bias"]


def test_rules_go_on_top_of_each_other_and_of_the_rest():
    rules = [
        {"params": "inner", "lr_mult": 10, "decay_mult": 2},
        {"params": "*.bias", "lr_mult": 0.5, "momentum": 0.0},
    ]
    assert grouped(TinyModel(), no_decay=True, rules=rules) == [
        {"params": ["outer.weight"]},
        {"params": ["norm.weight"], "weight_decay": 0.0},
        {"params": ["inner.weight"], "lr": 1.0, "weight_decay": 0.02},
        {"params": ["inner.bias"], "lr": 0.5, "weight_decay": 0.0, "momentum": 0.0},
        {"params": ["norm.bias", "outer.bias"], "lr": 0.05, "weight_decay": 0.0, "momentum": 0.0},
    ]


def test_nothing_asked_for_is_one_group():
    assert len(grouped(TinyModel())) == 1
    assert len(grouped(TinyModel(), no_decay=False, layer_decay=None, rules=[])) == 1


def test_patterns():
    names = ["a.weight", "ab.weight", "a.0.bias", "b"]
    assert select("a", names) == ["a.weight", "a.0.bias"]
    assert select("a*", names) == ["a.weight", "ab.weight", "a.0.bias"]
    assert select("*.bias", names) == ["a.0.bias"]
    assert select("b", names) == ["b"]
    assert select("c", names) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"nodecay": True}, r"param_groups\.nodecay: no such option; there are: no_decay"),
        ({"no_decay": "yes"}, r"no_decay=yes: use true or false"),
        ({"layer_decay": 2}, r"layer_decay=2: use a number above 0, up to 1"),
        (
            {"rules": [{"params": "hed", "lr": 1}]},
            r"rules\[0\]\.params: 'hed' is no .*: inner, nor",
        ),
        ({"rules": [{"params": "inner"}]}, r"rules\[0\]: use a pattern and what is set"),
        (
            {"rules": [{"params": "inner", "lr_mult": -1}]},
            r"rules\[0\]\.lr_mult=-1: .* not below 0",
        ),
        ({"rules": [{"params": "inner", "lr": -0.1}]}, r"rules\[0\]\.lr=-0\.1: .* not below 0"),
        ({"rules": [{"params": "inner", "decay_mult": math.nan}]}, r"decay_mult=nan: use a number"),
        ({"rules": [{"params": "inner", "weight_decay": "x"}]}, r"weight_decay=x: use a number"),
        ({"rules": "inner"}, r"param_groups\.rules=inner: use a list of rules, such as \[\{params"),
        ({"rules": {"params": "inner"}}, r"param_groups\.rules=\{.*: use a list of rules, such"),
        ({"rules": [{"params": "inner", "lr_mul": 1}]}, r"\.lr_mul: .*lr_mult, decay_mult, lr, m"),
    ],
)
def test_what_is_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        grouped(TinyModel(), **options)


def test_what_the_optimizer_does_not_have():
    model = TinyModel()
    with pytest.raises(ConfigError, match=r"optimizer\.param_groups\.no_decay: .*weight_decay"):
        param_groups(model, ["inner.weight"], {"no_decay": True}, {"lr": 0.1})


def tiny(*overrides):
    with with_hydra():
        cfg = compose(
            "config",
            overrides=["trainer.device=cpu", "trainer.max_epochs=2", "sinks=none", *overrides],
        )
    cfg.model = {"_target_": "fakes.TinyModel"}
    cfg.task = {"_target_": "fakes.TinyTask"}
    for split in ("train", "val"):
        cfg.data[split] = {"_target_": "fakes.TinyData"}
    return cfg


@pytest.mark.parametrize("optimizer", ["sgd", "adam", "adamw"])
def test_a_run_with_groups_moves_all_of_them_along_the_schedule(tmp_path, optimizer):
    rules = "optimizer.param_groups.rules=[{params: inner, lr_mult: 0.5}]"
    decay = "optimizer.weight_decay=0.1"
    cfg = tiny(f"optimizer={optimizer}", decay, "optimizer.param_groups.no_decay=true", rules)
    runner = build_runner(cfg, tmp_path)
    groups = runner.optimizer.param_groups
    base = cfg.optimizer.lr
    assert [g["lr"] / base for g in groups] == [1.0, 1.0, 0.5, 0.5]
    assert [g["weight_decay"] for g in groups] == [0.1, 0.0, 0.1, 0.0]
    runner.run("train")
    lrs = [g["lr"] for g in groups]
    assert lrs[2] == lrs[3] == pytest.approx(lrs[0] / 2)
    assert lrs[0] < base
    assert set(runner.message_hub.scalars) >= {"train/lr", "train/lr/1", "train/lr/3"}


def test_a_resume_finds_each_group_again(tmp_path):
    def run(folder, *more):
        folder.mkdir(exist_ok=True)
        runner = build_runner(tiny("optimizer.param_groups.no_decay=true", *more), folder)
        runner.run("train")
        return runner.model.state_dict()

    run(tmp_path / "parts", "trainer.max_epochs=1", "param_scheduler=none")
    whole = run(tmp_path / "plain", "param_scheduler=none")
    resumed = run(tmp_path / "parts", "resume=auto", "param_scheduler=none")
    assert all(torch.equal(whole[key], resumed[key]) for key in whole)


def test_an_unknown_pattern_is_told_before_any_data_is_loaded(tmp_path):
    cfg = tiny("optimizer.param_groups.rules=[{params: nose, lr: 1.0}]")
    cfg.data.train = {"_target_": "no.data.is.looked.at"}
    with pytest.raises(ConfigError, match=r"optimizer\.param_groups\.rules\[0\]\.params: 'nose'"):
        build_runner(cfg, tmp_path)

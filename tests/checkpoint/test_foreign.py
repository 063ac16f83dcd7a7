"""Weights of other programs: found in their files, under the model's names, or refused whole."""

from __future__ import annotations

import collections

import pytest
import torch
from fakes import TinyModel
from hydra import compose
from safetensors.torch import save_file

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_runner
from hookexp.checkpoint.foreign import fitted
from hookexp.compose.conf_dir import with_hydra
from hookexp.errors import ConfigError
from hookexp.hook import Hook


class WeightsAtTheStart(Hook):
    def before_train(self, runner):
        self.weights = {k: v.clone() for k, v in runner.model.state_dict().items()}
        runner.state.stop("seen enough")


def loaded(make_runner, path, **more):
    watch = WeightsAtTheStart()
    make_runner({"watch": watch}, load_from=str(path), max_epochs=1, **more).run("train")
    return watch.weights


def equal(one, two):
    return one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize(
    "layout",
    ["bare", "state_dict", "model", "ddp", "compiled", "compiled part", "both", "lightning", "st"],
)
def test_what_other_programs_write(make_runner, tmp_path, layout):
    torch.manual_seed(7)
    weights = TinyModel().state_dict()
    path = tmp_path / ("x.safetensors" if layout == "st" else "x.pth")
    prefix = {"ddp": "module.", "compiled": "_orig_mod.", "both": "module._orig_mod."}
    prefix = {**prefix, "lightning": "model."}.get(layout, "")
    content = {prefix + name: value for name, value in weights.items()}
    if layout == "compiled part":
        content = {n.replace("inner.", "inner._orig_mod."): v for n, v in weights.items()}
    if layout in ("state_dict", "compiled", "lightning"):
        content = {"epoch": 3, "state_dict": content}
    if layout == "model":
        content = {"model": content, "optimizer": {}}
    if layout == "st":
        save_file(content, path)
    else:
        torch.save(content, path)
    assert equal(loaded(make_runner, path), weights)


def test_a_prefix_that_the_model_has_itself_stays(make_runner, tmp_path):
    class Wrapped(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = TinyModel()

        def forward(self, inputs):
            return self.model(inputs)

    weights = Wrapped().state_dict()
    torch.save({f"module.{name}": value for name, value in weights.items()}, tmp_path / "x.pth")
    assert equal(loaded(make_runner, tmp_path / "x.pth", model=Wrapped()), weights)


@pytest.mark.parametrize("layout", ["bare", "ddp", "both", "compiled part"])
def test_the_versions_of_modules_go_with_their_weights(layout):
    def within(name, module):
        outer = torch.nn.Module()
        outer.add_module(name, module)
        return outer

    model = TinyModel()
    model._version, model.inner._version = 3, 7
    weights = model.state_dict()
    saved = model
    if layout == "compiled part":
        model.inner = within("_orig_mod", model.inner)
    if layout == "both":
        saved = within("_orig_mod", saved)
    if layout in ("ddp", "both"):
        saved = within("module", saved)
    assert fitted(saved.state_dict(), weights.keys())._metadata == weights._metadata


@pytest.mark.parametrize("content", [{"epoch": 3}, {}, {"state_dict": [1]}, {"a": 1}])
def test_a_file_without_weights_lists_what_it_has(make_runner, tmp_path, content):
    torch.save(content, tmp_path / "x.pth")
    with pytest.raises(
        ConfigError, match=r"x\.pth: has no weights; .* it has: (epoch|nothing|s|a)"
    ):
        loaded(make_runner, tmp_path / "x.pth")


@pytest.mark.parametrize("name", ["x.safetensors", "x.pth"])
def test_a_torn_file_says_so(make_runner, tmp_path, name):
    weights = TinyModel().state_dict()
    path = tmp_path / name
    (save_file if path.suffix == ".safetensors" else torch.save)(weights, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ConfigError, match="it is torn or no"):
        loaded(make_runner, path)


def test_a_module_or_a_foreign_type_needs_trust_which_the_refusal_names(make_runner, tmp_path):
    whole, mixed = tmp_path / "whole.pth", tmp_path / "mixed.pth"
    torch.manual_seed(7)
    model = TinyModel()
    torch.save(model, whole)
    torch.save({"state_dict": model.state_dict(), "hub": collections.deque([1])}, mixed)
    for path in (whole, mixed):
        with pytest.raises(ConfigError, match=r"could run code \([^\n]+load_from_trusted=true"):
            loaded(make_runner, path)
        assert equal(loaded(make_runner, path, load_from_trusted=True), model.state_dict())
    with pytest.raises(ConfigError) as caught:
        make_runner(resume=str(mixed), load_from_trusted=True, max_epochs=1).run("train")
    assert "could run code" in str(caught.value)
    assert "load_from_trusted" not in str(caught.value)


def test_a_type_that_is_not_installed_is_named(make_runner, tmp_path):
    data = b"\x80\x02cno_such_package\nThing\n)R."
    (tmp_path / "x.pth").write_bytes(data)
    with pytest.raises(ConfigError, match=r"No module named 'no_such_package'"):
        loaded(make_runner, tmp_path / "x.pth", load_from_trusted=True)


def runner_of(tmp_path, *overrides):
    with with_hydra():
        cfg = compose("config", overrides=["trainer.device=cpu", "sinks=none", *overrides])
    tmp_path.mkdir(exist_ok=True)
    return build_runner(cfg, tmp_path)


def test_from_the_command_line_the_file_is_read_once(tmp_path, monkeypatch):
    short = "trainer.max_iters=1"
    runner_of(tmp_path / "a", short).run("train")
    reads = []
    real = torch.load
    monkeypatch.setattr(torch, "load", lambda *a, **k: reads.append(a) or real(*a, **k))
    for key in ("load_from", "resume"):
        reads.clear()
        runner_of(tmp_path / key, "trainer.max_iters=2", f"{key}={tmp_path / 'a'}").run("train")
        assert len(reads) == 1


def test_what_the_two_keys_take(tmp_path):
    with pytest.raises(ConfigError, match=r"load_from_trusted=maybe: use true or false"):
        runner_of(tmp_path, "load_from_trusted=maybe")
    with pytest.raises(ConfigError, match=r"resume_ignore: ema is no part .*hooks\.NAME"):
        runner_of(tmp_path, "resume_ignore=[ema]")

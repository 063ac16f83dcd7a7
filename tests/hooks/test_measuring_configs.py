"""The config groups of the hooks that measure, guard and search: complete, and true."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_hooks
from hookexp.compose.conf_dir import conf_dir

STEMS = (
    "activations",
    "check_invalid_loss",
    "garbage_collector",
    "grad_norm",
    "lr_finder",
    "memory",
    "throughput",
    "time_limit",
)
WITHOUT_DEFAULT = {"time_limit": {"minutes"}}
"""Parameters that the config has a value for and the class has none."""


def hooks_of(words):
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        return build_hooks(compose("config", overrides=[f"hooks={words}"]))


@pytest.mark.parametrize("stem", STEMS)
def test_every_parameter_stands_there_with_the_default_of_the_class(stem):
    path = Path(conf_dir()) / "hooks" / stem / "default.yaml"
    written = OmegaConf.to_container(OmegaConf.load(path))
    assert path.read_text().startswith("# ")
    assert written.pop("_target_").startswith(f"hookexp.hooks.{stem}.")
    assert written.pop("priority") is None
    words = f"+{stem}-param_scheduler"
    parameters = inspect.signature(type(hooks_of(words)[stem])).parameters
    defaults = {
        name: list(p.default) if isinstance(p.default, tuple) else p.default
        for name, p in parameters.items()
    }
    assert list(written) == list(defaults)
    for name in WITHOUT_DEFAULT.get(stem, ()):
        assert defaults.pop(name) is inspect.Parameter.empty
        del written[name]
    assert written == defaults


@pytest.mark.parametrize(
    ("option", "attribute", "value"),
    [
        ("check_invalid_loss/skip", "action", "skip"),
        ("grad_norm/layers", "per_layer", True),
        ("throughput/flops", "flops_per_sample", "count"),
    ],
)
def test_options(option, attribute, value):
    assert getattr(hooks_of(f"+{option}")[option.split("/")[0]], attribute) == value


def test_all_but_the_search_go_together():
    names = [stem for stem in STEMS if stem != "lr_finder"]
    assert {entry.name for entry in hooks_of("+" + "+".join(names)).entries} >= set(names)

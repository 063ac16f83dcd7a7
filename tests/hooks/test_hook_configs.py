"""The config group of each hook: complete, true, and what the published design promises."""

from __future__ import annotations

import inspect
import pkgutil
from pathlib import Path

import pytest
from hydra import compose
from omegaconf import OmegaConf

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_hooks
from hookexp.compose.conf_dir import conf_dir, with_hydra
from hookexp.hook import Priority

FOLDER = Path(conf_dir()) / "hooks"
STEMS = sorted(path.parent.name for path in FOLDER.glob("*/default.yaml"))

NOT_THE_CLASS_DEFAULT = {
    "closure": {"fn_name", "fn"},
    "early_stopping": {"monitor"},
    "ema": {"warm_up"},
    "freeze": {"params"},
    "optimizer": {"grad_clip"},
    "prepare_tta": {"transforms"},
    "switch_recipe": {"switches"},
    "time_limit": {"minutes"},
}
"""Parameters that the class requires, or that the config has another value for."""

PUBLISHED = {
    "runtime_info": ("RuntimeInfoHook", "VERY_HIGH", {}),
    "optimizer": (
        "OptimizerHook",
        "HIGH",
        {
            "grad_clip": {"max_norm": None, "norm_type": 2.0, "clip_value": None},
            "cumulative_iters": 1,
            "loss_scale": "dynamic",
            "detect_anomalous_params": False,
            "set_to_none": True,
        },
    ),
    "iter_timer": ("IterTimerHook", "NORMAL", {}),
    "sampler_seed": ("DistSamplerSeedHook", "NORMAL", {}),
    "logger": (
        "LoggerHook",
        "BELOW_NORMAL",
        {
            "interval": 10,
            "ignore_last": True,
            "interval_exp_name": 1000,
            "out_dir": None,
            "out_suffix": [".json", ".jsonl", ".log", ".py", "yaml"],
            "keep_local": True,
            "log_metric_by_epoch": True,
        },
    ),
    "param_scheduler": ("ParamSchedulerHook", "LOW", {}),
    "checkpoint": (
        "CheckpointHook",
        "VERY_LOW",
        {
            "interval": 1,
            "by_epoch": True,
            "save_optimizer": True,
            "save_param_scheduler": True,
            "out_dir": None,
            "max_keep_ckpts": -1,
            "save_last": True,
            "save_best": None,
            "rule": None,
            "greater_keys": None,
            "less_keys": None,
            "filename_tmpl": None,
            "published_keys": None,
            "save_begin": 0,
            "async_save": True,
            "every_n_minutes": None,
            "save_on_exception": False,
        },
    ),
    "ema": (
        "EMAHook",
        "NORMAL",
        {
            "ema_type": "ExponentialMovingAverage",
            "momentum": 0.0002,
            "interval": 1,
            "gamma": 100,
            "update_buffers": False,
            "device": None,
            "strict_load": False,
            "begin_iter": 0,
            "begin_epoch": 0,
        },
    ),
    "early_stopping": (
        "EarlyStoppingHook",
        "LOWEST",
        {
            "rule": None,
            "min_delta": 0.0,
            "strict": False,
            "check_finite": True,
            "patience": 5,
            "stopping_threshold": None,
        },
    ),
    "empty_cache": (
        "EmptyCacheHook",
        "NORMAL",
        {"before_epoch": False, "after_epoch": True, "after_iter": False},
    ),
    "sync_buffers": ("SyncBuffersHook", "NORMAL", {}),
    "profiler": (
        "ProfilerHook",
        "VERY_LOW",
        {
            "by_epoch": True,
            "profile_times": 1,
            "activity_with_cpu": True,
            "activity_with_cuda": "auto",
            "schedule": None,
            "on_trace_ready": "log_trace",
            "record_shapes": False,
            "profile_memory": False,
            "with_stack": False,
            "with_flops": False,
            "json_trace_path": None,
        },
    ),
    "visualizer": (
        "VisualizerHook",
        "LOWEST",
        {"interval": 1, "draw_gt": True, "draw_pred": True, "max_images": 16},
    ),
    "closure": ("ClosureHook", "NORMAL", {}),
    "check_invalid_loss": (
        "CheckInvalidLossHook",
        "NORMAL",
        {"interval": 50, "action": "raise"},
    ),
    "prepare_tta": ("PrepareTTAHook", "NORMAL", {"merge": "mean"}),
    "activations": (
        "ActivationsHook",
        "NORMAL",
        {"interval": 100, "gradients": False},
    ),
    "upload": ("UploadHook", "LOWEST", {"interval": 1, "target": None, "command": None}),
}
"""Class, priority and parameters under which users of MMEngine and MMCV know a hook."""


def written_in(stem):
    """What the default option holds, as plain values, and the class it names."""
    content = OmegaConf.to_container(OmegaConf.load(FOLDER / stem / "default.yaml"))
    return content, pkgutil.resolve_name(content.pop("_target_"))


def hooks_of(*words):
    with with_hydra():
        return build_hooks(compose("config", overrides=list(words)))


@pytest.mark.parametrize("stem", STEMS)
def test_every_parameter_stands_there_with_the_default_of_the_class(stem):
    written, cls = written_in(stem)
    assert (FOLDER / stem / "default.yaml").read_text().startswith("# ")
    assert cls.__module__ == f"hookexp.hooks.{stem}"
    assert written.pop("priority") is None
    defaults = {
        name: list(p.default) if isinstance(p.default, tuple) else p.default
        for name, p in inspect.signature(cls).parameters.items()
    }
    assert set(written) == set(defaults)
    differ = {name for name in defaults if written[name] != defaults[name]}
    assert differ == NOT_THE_CLASS_DEFAULT.get(stem, set())


@pytest.mark.parametrize("stem", PUBLISHED)
def test_it_has_the_published_names_and_numbers(stem):
    class_name, priority, parameters = PUBLISHED[stem]
    written, cls = written_in(stem)
    assert (cls.__name__, cls.priority) == (class_name, Priority[priority])
    assert {name: written[name] for name in parameters} == parameters


@pytest.mark.parametrize(
    ("words", "attribute", "value"),
    [
        ("hooks=+check_invalid_loss/skip", "action", "skip"),
        ("hooks/checkpoint=best", "save_best", ["auto"]),
        ("hooks=+ema/annealing", "ema_type", "MomentumAnnealingEMA"),
        ("hooks=+ema/swa", "ema_type", "StochasticWeightAverage"),
        ("hooks=+grad_norm/layers", "per_layer", True),
        ("hooks=+throughput/flops", "flops_per_sample", "count"),
        ("hooks/optimizer=accumulate", "cumulative_iters", 4),
        ("hooks/optimizer=sam", "rho", 0.05),
        ("hooks/optimizer=graphed", "warmup_iters", 3),
    ],
)
def test_options(words, attribute, value):
    stem = words.removeprefix("hooks=+").removeprefix("hooks/").split("=")[0].split("/")[0]
    assert getattr(hooks_of(words)[stem], attribute) == value


def test_no_optimizer_is_an_option_too():
    assert "optimizer" not in {entry.name for entry in hooks_of("hooks/optimizer=none").entries}


def test_all_but_the_search_go_together_each_at_its_place():
    by_default = {entry.name for entry in hooks_of().entries}
    words = ["hooks=+" + "+".join(sorted({*STEMS} - by_default - {"lr_finder"}))]
    words += ["hooks.closure.fn_name=after_run", "hooks.closure.fn=builtins.print"]
    entries = hooks_of(*words, "hooks.upload.target=elsewhere").entries
    assert {entry.name for entry in entries} == {*STEMS} - {"lr_finder"}
    assert all(entry.priority == type(entry.hook).priority for entry in entries)

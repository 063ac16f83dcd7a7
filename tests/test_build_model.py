"""Faster ways through the same model give the same result: compiled, TF32, recomputed."""

from __future__ import annotations

import functools
import logging

import pytest
import torch
from fakes import TinyTask
from hydra import compose
from torch import nn

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_runner
from hookexp.build_model import compiled_step
from hookexp.compose.conf_dir import with_hydra
from hookexp.compose.isolation import restored_process_state
from hookexp.errors import ConfigError
from hookexp.settings import TrainerSettings

# Traces and differentiates as the default backend does, without its minute of C++ compilation.
BACKEND = "aot_eager"
EXACT = "trainer.deterministic=true"


def config(*overrides, max_iters=3):
    common = ["trainer.device=cpu", f"trainer.max_iters={max_iters}", "sinks=none", "data.val=null"]
    small = ["model.width=4", "data.batch_size=8", "hooks=-checkpoint"]
    with with_hydra():
        return compose("config", overrides=[*common, *small, *overrides])


def trained(tmp_path, *overrides):
    runner = build_runner(config(*overrides), tmp_path)
    runner.run("train")
    losses = [float(loss) for loss in runner.message_hub.get_scalar("train/loss").values]
    return losses, runner.model.state_dict()


def assert_close(one, two, **tolerance):
    assert one[0] == pytest.approx(two[0], rel=tolerance.get("rtol", 1e-5))
    assert list(one[1]) == list(two[1])
    for key in one[1]:
        torch.testing.assert_close(one[1][key], two[1][key], msg=key, **tolerance)


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
def test_a_compiled_run_is_the_same_run_and_says_that_it_compiles(tmp_path, caplog):
    caplog.set_level(logging.INFO, "hookexp")
    compiled = trained(tmp_path, "model.dropout=0", f"+trainer.compile.backend={BACKEND}")
    assert "the first iterations compile" in caplog.text
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1
    assert_close(compiled, trained(tmp_path, "model.dropout=0"), rtol=1e-4, atol=1e-5)
    torch._dynamo.reset()


@pytest.mark.filterwarnings("ignore::DeprecationWarning:torch")
@pytest.mark.parametrize(
    ("words", "options"),
    [
        (["trainer.compile=true"], {}),
        (["trainer.compile=max-autotune"], {"mode": "max-autotune"}),
        (["trainer.compile={mode: reduce-overhead}"], {"mode": "reduce-overhead"}),
        (["trainer.compile={dynamic: true}"], {"dynamic": True}),
        (["trainer.compile=true", EXACT], {"dynamic": False}),
        (["trainer.compile=default", EXACT], {"mode": "default", "dynamic": False}),
        (["trainer.compile={dynamic: true}", EXACT], {"dynamic": True}),
    ],
)
def test_what_torch_compile_is_given(tmp_path, monkeypatch, words, options):
    asked, original = [], torch.compile

    @functools.wraps(original)
    def noted(function, **given):
        asked.append((function.__name__, given))
        return original(function, **given)

    monkeypatch.setattr(torch, "compile", noted)
    with restored_process_state():
        build_runner(config(*words), tmp_path)
    assert asked == [("train_step", options)]


@pytest.mark.parametrize(
    "compiled",
    ["max-autotune", {"mode": "reduce-overhead"}, {"options": {"triton.cudagraphs": True}}],
)
def test_results_that_lie_where_the_next_ones_will_are_copied(monkeypatch, compiled):
    """As those of CUDA graphs do, which torch's compiler makes on a GPU."""
    memory = torch.zeros(())

    @functools.wraps(torch.compile)
    def as_graphs(step, **given):
        return lambda model, batch: {"loss": memory.add_(1), "n": 3}

    monkeypatch.setattr(torch, "compile", as_graphs)
    step = compiled_step(TinyTask(), TrainerSettings(compile=compiled))
    first, second = step(None, None), step(None, None)
    assert (first["loss"], first["n"], second["loss"]) == (1, 3, 2)


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("trainer.compile=fast", r"trainer\.compile=fast: .*a mode \(default, reduce-overhead"),
        ("trainer.compile={mod: x}", r"trainer\.compile\.mod: .*mode.*did you mean mode\?"),
        ("trainer.compile={backend: nix}", r"trainer\.compile={'backend': 'nix'}: .*nix"),
        ("trainer.compile={mode: a, options: {b: 1}}", r"trainer\.compile=.*[Ee]ither mode or opt"),
        ("trainer.ddp=fast", r"trainer\.ddp=fast: .*such as \{find_unused_parameters: true\}"),
        ("trainer.ddp={find_unused: true}", r"ddp\.find_unused: .*mean find_unused_parameters\?"),
        ("trainer.tf32=on_gpu", r"trainer\.tf32=on_gpu: use true, false or null"),
        ("trainer.activation_checkpointing=classifier", r"use a list of the names of modules"),
        (
            "trainer.activation_checkpointing=[clasifier]",
            r"'clasifier' is the name of no module of the model; the nearest are: classifier",
        ),
    ],
)
def test_what_is_refused_when_the_run_is_built(tmp_path, word, message):
    with pytest.raises(ConfigError, match=message):
        build_runner(config(word), tmp_path)


def lazy_model(is_run=False, **of_the_convnet):
    model = nn.Sequential(nn.Sequential(nn.Flatten(), nn.LazyLinear(10)))
    if is_run:
        model(torch.zeros(1, 1, 8, 8))
    return model


@pytest.mark.filterwarnings("ignore:Lazy modules are a new feature:UserWarning")
def test_a_lazy_model_is_refused_until_a_batch_went_through_it(tmp_path):
    words = [f"model._target_={__name__}.lazy_model"]
    with pytest.raises(ConfigError, match=r"0\.1 is a LazyLinear, .* end of its constructor"):
        build_runner(config(*words), tmp_path)
    build_runner(config(*words, "+model.is_run=true"), tmp_path)


def test_tf32_is_switched_in_products_and_convolutions_and_put_back(tmp_path):
    def flags():
        return torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32

    before = flags()
    with restored_process_state():
        build_runner(config("trainer.tf32=null"), tmp_path)
        assert flags() == before
        for tf32, wanted in ((True, ("high", True)), (False, ("highest", False))):
            build_runner(config(f"trainer.tf32={tf32}"), tmp_path)
            assert flags() == wanted
            assert torch.backends.cuda.matmul.allow_tf32 is tf32
    assert flags() == before


@pytest.mark.parametrize(
    ("word", "tolerance"),
    [
        ("trainer.tf32=true", {"rtol": 0, "atol": 0}),  # Exact on a CPU, which has none.
        ("trainer.channels_last=true", {"rtol": 1e-4, "atol": 1e-5}),
        ("trainer.precision=bf16", {"rtol": 0.05, "atol": 0.02}),
    ],
)
def test_other_formats_give_the_same_result_within_their_tolerance(tmp_path, word, tolerance):
    with restored_process_state():
        plain = trained(tmp_path, "model.dropout=0")
        assert_close(trained(tmp_path, "model.dropout=0", word), plain, **tolerance)
        if tolerance["rtol"]:
            assert any(
                not torch.equal(value, plain[1][key])
                for key, value in trained(tmp_path, "model.dropout=0", word)[1].items()
            )


def test_channels_last_is_the_layout_of_the_weights_too(tmp_path):
    model = build_runner(config("trainer.channels_last=true"), tmp_path).model
    kernels = [m.weight for m in model.modules() if isinstance(m, nn.Conv2d) and m.in_channels > 1]
    assert kernels
    assert all(k.is_contiguous(memory_format=torch.channels_last) for k in kernels)
    assert not any(k.is_contiguous() for k in kernels)

"""`mode=verify_resume` over many settings: each alone, and some drawn at random together.

    python tests/bench/matrix.py
    python tests/bench/matrix.py --random 200 --seed 3

Hooks, optimizers of torch, schedules, precisions, memory layouts, kinds of data: for each a run is
saved in the middle and continued, and has to be the run that was not stopped, bit for bit.
"""

from __future__ import annotations

import argparse
import io
import logging
import random
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from contextlib import redirect_stdout
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(TESTS), str(TESTS.parent)]

import torch
from hydra import compose

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.compose.conf_dir import with_hydra
from hookexp.compose.isolation import restored_process_state
from hookexp.compose.old_keys import drop_keys_of_old_targets
from hookexp.errors import ConfigError
from hookexp.verify import verify_resume

SMALL = [
    "trainer.device=cpu",
    "model.width=8",
    "data.batch_size=32",
    "trainer.limit_train_batches=9",
    "trainer.limit_val_batches=2",
    "hooks.logger.interval=2",
    "trainer.verify_iters=11",
]
CHARLM = [
    "experiment=charlm",
    "trainer.device=cpu",
    *(f"data.{split}.max_chars=30000" for split in ("train", "val", "test")),
    "data.val.max_windows=8",
    "data.batch_size=4",
    "model.num_layers=2",
    "model.num_heads=2",
    "model.width=16",
    "trainer.max_iters=40",
    "trainer.val_interval=7",
    "hooks.logger.interval=3",
    "trainer.verify_iters=11",
]
HOOKS = [
    *("activations", "check_invalid_loss", "check_invalid_loss=skip", "early_stopping", "ema"),
    *("ema=swa", "ema=annealing", "empty_cache", "garbage_collector", "grad_norm", "memory"),
    *("grad_norm=layers", "precise_bn", "predictions", "prepare_tta", "profiler", "sync_buffers"),
    *("throughput", "throughput=flops", "time_limit", "visualizer"),
]
SCHEDULES = [
    *("constant", "cosine", "cosine_restart", "exponential", "linear", "multistep", "none"),
    *("onecycle", "plateau", "poly", "step", "warmup_cosine", "warmup_linear", "warmup_multistep"),
]
OF_TORCH = ["Adagrad", "RMSprop", "Adadelta", "NAdam", "RAdam", "Rprop", "Adamax", "ASGD"]
CROPS = "data.train._target_=killing.CroppedDigits"
ACCUMULATE = "hooks/optimizer=accumulate"
FROZEN = "+hooks/freeze=default hooks.freeze.params=[features.0] hooks.freeze.until_iter=14"
OTHERS = [
    "hooks/checkpoint=best",
    "hooks.checkpoint.async_save=false",
    FROZEN,
    f"{ACCUMULATE} +hooks/ema=default hooks.optimizer.grad_clip.max_norm=0.5",
    f"{ACCUMULATE} hooks.optimizer.set_to_none=false",
    "hooks/optimizer=sam +hooks/ema=swa optimizer=adamw",
    "hooks.optimizer.grad_clip.clip_value=0.01",
    "optimizer._target_=torch.optim.RMSprop optimizer.momentum=0.9 +optimizer.centered=true",
    "optimizer=adamw optimizer.amsgrad=true optimizer.param_groups.layer_decay=0.7",
    "optimizer.momentum=0 optimizer.nesterov=false",
    "optimizer.dampening=0.1 optimizer.nesterov=false",
    "trainer.channels_last=true optimizer=adam +hooks/ema=default hooks/optimizer=sam",
    "trainer.channels_last=true +hooks/ema=swa hooks.ema.update_buffers=true",
    "trainer.activation_checkpointing=[features.*]",
    "trainer.compile=true",
    "trainer.compile=true trainer.deterministic=true trainer.limit_train_batches=null "
    "trainer.verify_iters=40",
    "trainer.deterministic=true",
    "trainer.val_interval=3",
    "trainer.overfit_batches=2 trainer.limit_train_batches=null trainer.limit_val_batches=null",
    "trainer.max_iters=40 trainer.val_interval=7 +hooks/early_stopping=default "
    "param_scheduler=plateau",
    "data.num_workers=2",
    "data.drop_last=true",
    "data.shuffle=false",
    "+data.transform._target_=hookexp.data.augment.random_shift +data.transform._partial_=true",
    "seed=null",
    CROPS,
    f"{CROPS} data.num_workers=2 trainer.channels_last=true {ACCUMULATE}",
    "+hooks/ema=default hooks.ema.begin_iter=3 hooks.ema.interval=2",
    "+hooks/switch_recipe=default "
    "hooks.switch_recipe.switches=[{iter:13,task:{loss:{_target_:torch.nn.MultiMarginLoss}}}]",
]
OF_TEXT = [
    *("", "model.dropout=0.2", "trainer.precision=bf16 +hooks/ema=default", ACCUMULATE),
    *("optimizer=sgd", "trainer.activation_checkpointing=[blocks.*] model.dropout=0.2"),
    "data.num_workers=2",
]


def singles() -> Iterator[list[str]]:
    """One setting, or a few that belong together, beside the default ones."""
    for hook in HOOKS:
        yield [*SMALL, _added(hook)]
    for schedule in SCHEDULES:
        yield [*SMALL, f"param_scheduler={schedule}"]
    for optimizer in ("sgd", "adam", "adamw"):
        for fused in ("true", "false", "null"):
            yield [*SMALL, f"optimizer={optimizer}", f"optimizer.fused={fused}"]
    for optimizer in OF_TORCH:
        yield [*SMALL, f"optimizer._target_=torch.optim.{optimizer}"]
    for how in ("accumulate", "sam", "scheduled"):
        yield [*SMALL, f"hooks/optimizer={how}"]
    for precision in ("bf16", "fp16"):
        yield [*SMALL, f"trainer.precision={precision}"]
        yield [*SMALL, f"trainer.precision={precision}", ACCUMULATE, _added("check_invalid_loss")]
    for words in OTHERS:
        yield [*SMALL, *words.split()]
    for words in OF_TEXT:
        yield [*CHARLM, *words.split()]


def drawn(rng: random.Random) -> list[str]:
    """Settings of many kinds at once."""
    names = ("ema", "early_stopping", "grad_norm", "check_invalid_loss=skip", "precise_bn")
    words = [*SMALL, *(_added(name) for name in rng.sample(names, 2))]
    words += rng.choice([[], FROZEN.split()])
    schedules = ("cosine", "warmup_cosine", "onecycle", "plateau", "cosine_restart", "step")
    for key, values in (
        ("hooks/optimizer", ("default", "accumulate", "sam", "scheduled")),
        ("hooks/checkpoint", ("default", "best")),
        ("optimizer", ("sgd", "adam", "adamw")),
        ("param_scheduler", schedules),
        ("trainer.precision", ("fp32", "fp32", "bf16", "fp16")),
        ("trainer.channels_last", ("true", "false")),
        ("trainer.activation_checkpointing", ("[]", "[features.*]")),
        ("data.num_workers", ("0", "0", "2")),
    ):
        words.append(f"{key}={rng.choice(values)}")
    return words if rng.random() < 0.6 else [*words, CROPS]


def _added(hook: str) -> str:
    name, _, option = hook.partition("=")
    return f"+hooks/{name}={option or 'default'}"


def verdict(words: list[str]) -> str:
    """What is wrong; empty if nothing is."""
    with (
        tempfile.TemporaryDirectory() as folder,
        restored_process_state(),
        redirect_stdout(io.StringIO()),
    ):
        with with_hydra():
            cfg = compose("config", overrides=words)
        drop_keys_of_old_targets(cfg, words)
        try:
            verify_resume(cfg, Path(folder))
        except ConfigError as error:
            return str(error)
    return ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--random", type=int, default=40, help="runs with settings drawn at random")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("hookexp").setLevel(logging.CRITICAL)
    rng, began, wrong = random.Random(arguments.seed), time.monotonic(), 0
    runs = [*singles(), *(drawn(rng) for _ in range(arguments.random))]
    for words in runs:
        if problem := verdict(words):
            wrong += 1
            shown = " ".join(w for w in words if w not in SMALL and w not in CHARLM)
            print(f"{shown}\n    {problem}", flush=True)
    print(f"{len(runs) - wrong} of {len(runs)} equal, {time.monotonic() - began:.0f} s")


if __name__ == "__main__":
    main()

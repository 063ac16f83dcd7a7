"""Hooks that measure and guard do not make the host wait for the device between two log points.

On a CPU nothing waits, so the calls are counted that would on a GPU.
"""

from __future__ import annotations

import pytest
import torch
from waiting import PerIteration, counted_waits

from hookexp.hooks.activations import ActivationsHook
from hookexp.hooks.check_invalid_loss import CheckInvalidLossHook
from hookexp.hooks.garbage_collector import GarbageCollectorHook
from hookexp.hooks.grad_norm import GradNormHook
from hookexp.hooks.iter_timer import IterTimerHook
from hookexp.hooks.logger import LoggerHook
from hookexp.hooks.lr_finder import LrFinderHook
from hookexp.hooks.memory import MemoryHook
from hookexp.hooks.runtime_info import RuntimeInfoHook
from hookexp.hooks.throughput import ThroughputHook
from hookexp.hooks.time_limit import TimeLimitHook
from hookexp.optim.wrapper import OptimWrapper


@pytest.fixture
def waits():
    with counted_waits() as counts:
        yield counts


def fused(runner, make):
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    runner.optim_wrapper = OptimWrapper({"default": make(runner.model.parameters())}, scaler)
    return runner


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
        lambda p: torch.optim.AdamW(p, lr=0.1, fused=True),
    ],
)
def test_nothing_waits_between_log_points(make_runner, waits, make):
    trace = PerIteration(waits)
    hooks = {
        "runtime_info": RuntimeInfoHook(),
        "iter_timer": IterTimerHook(),
        "activations": ActivationsHook(interval=1, gradients=True),
        "check_invalid_loss": CheckInvalidLossHook(interval=20),
        "grad_norm": GradNormHook(interval=1, per_layer=True),
        "throughput": ThroughputHook(flops_per_sample="count"),
        "memory": MemoryHook(),
        "garbage_collector": GarbageCollectorHook(interval=3),
        "time_limit": TimeLimitHook(minutes=60),
        "logger": LoggerHook(interval=10),
        "trace": trace,
    }
    fused(make_runner(hooks, max_iters=40, val_size=0), make).run("train")
    assert len(trace.seen) == 40
    for index, seen in enumerate(trace.seen, start=1):
        if index % 10:
            assert not seen, index
    assert trace.seen[9::10] == [{("tolist", "message_hub.py"): 1}] * 4


def test_the_search_for_a_learning_rate_waits_at_its_looks_only(make_runner, waits):
    trace = PerIteration(waits)
    hooks = {"lr_finder": LrFinderHook(num_iters=30, end_lr=0.1), "trace": trace}
    make_runner(hooks, max_iters=30, val_size=0).run("train")
    waiting = [index for index, seen in enumerate(trace.seen, start=1) if seen]
    assert waiting == [10, 20, 30]


def test_an_optimizer_that_is_not_fused_is_what_makes_the_guard_wait(make_runner, waits):
    trace = PerIteration(waits)
    hooks = {"check_invalid_loss": CheckInvalidLossHook(), "trace": trace}
    make_runner(hooks, max_iters=5, val_size=0).run("train")
    assert all(seen["__bool__", "guard.py"] == 1 for seen in trace.seen)

"""What an iteration costs beyond the loop one would write by hand, in microseconds.

    python tests/bench/overhead.py
    python tests/bench/overhead.py --window 10     # on a machine that is busy with other work
    python tests/bench/overhead.py --profile 1     # what our hooks and log points spend it on

A tiny MLP (32 -> 32 -> 10, batch 8, SGD with momentum, batches in memory) on one thread. The clock
is read every `window` batches and the fastest window of all repeats counts; one of 100 holds ten
log points, one of 10 a single one, and is more often undisturbed.
"""

from __future__ import annotations

import cProfile
import logging
import pstats
import time
from collections.abc import Callable
from dataclasses import replace

import timing
import torch
import workloads
from peers import ignite_us, installed, lightning_us, mmengine_us
from workloads import LEAN, NO_SAVES, TINY, Workload, bare_us, our_us

from hookexp.hook_list import HookList

DEFAULT = NO_SAVES
Row = tuple[str, str, str, str, str]
COLUMNS = ("per iteration", "us", "beyond, us", "ratio", "target, us")


def row(name: str, cost: float, reference: float | None = None, target: str = "") -> Row:
    if reference is None:
        return name, f"{cost:.1f}", "", "", target
    return name, f"{cost:.1f}", f"{cost - reference:+.1f}", f"{cost / reference:.2f}", target


def cases_of_ours(tiny: Workload, iters: int) -> dict[str, Callable[[], float]]:
    return {
        "bare": lambda: bare_us(tiny, iters),
        "bare, schedule": lambda: bare_us(tiny, iters, with_schedule=True),
        "lean": lambda: our_us(tiny, iters, *LEAN),
        "lean, 100": lambda: our_us(tiny, iters, *LEAN, num_no_ops=100),
        "default": lambda: our_us(tiny, iters, *DEFAULT),
        "default, no sinks": lambda: our_us(tiny, iters, *DEFAULT, "sinks=none"),
        "default, no log point": lambda: our_us(
            TINY, iters, *DEFAULT, f"hooks.logger.interval={iters}"
        ),
    }


def cases_of_peers(tiny: Workload, iters: int) -> dict[str, Callable[[], float]]:
    here = installed()
    cases: dict[str, Callable[[], float]] = {}
    if here["MMEngine"]:
        cases |= {
            "MMEngine, none": lambda: mmengine_us(tiny, iters, default_hooks=False),
            "MMEngine, 100": lambda: mmengine_us(tiny, iters, False, num_no_ops=100),
            "MMEngine, default": lambda: mmengine_us(tiny, iters),
        }
    if here["Lightning"]:
        cases |= {
            "Lightning, none": lambda: lightning_us(tiny, iters, barebones=True),
            "Lightning, 100": lambda: lightning_us(tiny, iters, True, num_no_ops=100),
            "Lightning, default": lambda: lightning_us(tiny, iters),
        }
    if here["Ignite"]:
        cases |= {
            "Ignite, none": lambda: ignite_us(tiny, iters),
            "Ignite, 100": lambda: ignite_us(tiny, iters, num_no_ops=100),
            "Ignite, default": lambda: ignite_us(tiny, iters, with_logging=True),
        }
    return cases


def mount_point_us(repeats: int, calls: int = 200_000) -> tuple[float, float]:
    """A mount point nobody listens to, as the loop calls it, beyond an empty loop; and a call
    of an empty function with the same arguments, which no framework can go below."""
    hooks, runner, batch = HookList(), object(), object()

    def empty() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            pass
        return time.perf_counter() - began

    def nobody() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            hooks.before_train_iter(runner, batch_idx=0, data_batch=batch)
        return time.perf_counter() - began

    def bare(runner: object, batch_idx: int, data_batch: object = None) -> None:
        pass

    def function() -> float:
        began = time.perf_counter()
        for _ in range(calls):
            bare(runner, batch_idx=0, data_batch=batch)
        return time.perf_counter() - began

    best = timing.least({"empty": empty, "nobody": nobody, "function": function}, repeats)
    scale = 1e6 / calls
    return (best["nobody"] - best["empty"]) * scale, (best["function"] - best["empty"]) * scale


def profile(iters: int) -> None:
    profiler = cProfile.Profile()
    runner = workloads.build(TINY, iters, *DEFAULT)
    loop = runner.train_loop.run
    runner.train_loop.run = lambda: profiler.runcall(loop)
    with workloads.quiet():
        runner.run("train")
    pstats.Stats(profiler).sort_stats("tottime").print_stats(35)


def print_ours(best: dict[str, float], nobody: float, function: float) -> None:
    bare, scheduled = best["bare"], best["bare, schedule"]
    rows = [
        row("bare loop", bare),
        row("bare loop with torch's cosine schedule", scheduled),
        row("default hooks, a log point in 10", best["default"], scheduled, "+30"),
        row("  without sinks", best["default, no sinks"], scheduled),
        row("  without log points", best["default, no log point"], scheduled),
        row("hooks=none and the optimizer hook", best["lean"], bare, "+5"),
        row("  and a hundred no-op hooks", best["lean, 100"], best["lean"], "+15"),
        ("a mount point nobody listens to", f"{nobody:.2f}", "", "", "0.15"),
        ("  an empty function called alike", f"{function:.2f}", "", "", ""),
    ]
    timing.print_table(COLUMNS, rows)


def print_peers(best: dict[str, float]) -> None:
    bare, scheduled = best["bare"], best["bare, schedule"]
    rows = []
    for name in (name for name, is_here in installed().items() if is_here):
        none, hundred, default = (best[f"{name}, {case}"] for case in ("none", "100", "default"))
        rows += [
            row(f"{name}, default hooks and log points", default, scheduled),
            row(f"{name}, nothing but the step", none, bare),
            row("  and a hundred no-op hooks", hundred, none),
        ]
    if rows:
        print()
        timing.print_table(COLUMNS[:4], [r[:4] for r in rows])


def main() -> None:
    arguments = timing.arguments(__doc__, iters=700, repeats=12, window=100, profile=0)
    torch.set_num_threads(1)
    iters = arguments.iters
    if arguments.profile:
        profile(iters)
        return
    tiny = replace(TINY, window=arguments.window)
    cases = cases_of_ours(tiny, iters)
    if not arguments.no_peers:
        cases |= cases_of_peers(tiny, iters)
    logging.captureWarnings(True)
    best = timing.least_by_turns(cases, arguments.repeats)
    timing.print_environment()
    print_ours(best, *mount_point_us(arguments.repeats))
    if not arguments.no_peers:
        print_peers(best)


if __name__ == "__main__":
    main()

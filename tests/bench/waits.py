"""How often our code makes the host wait for the device, between log points and at them.

    python tests/bench/waits.py

The default run (digits, convolutional net) with all default hooks and sinks and with ema,
grad_norm, throughput and check_invalid_loss. On any machine the calls are counted that ask a
tensor for its value: `item`, `tolist`, `cpu`, `numpy`, `bool()` and so on. On a GPU torch is also
told to raise an error wherever the host waits between two log points
(`torch.cuda.set_sync_debug_mode`), and the run is made in fp16 too, whose scaler has to know once
per step whether to skip.
"""

from __future__ import annotations

from collections import Counter

import timing
import torch
import workloads
from hydra import compose
from waiting import Forbidden, PerIteration, Waits, counted_waits

from hookexp.build import build_runner
from hookexp.compose.conf_dir import with_hydra

INTERVAL = 10
REPORTS = 50


def waits_of(precision: str, iters: int) -> list[Waits]:
    """What asked for a tensor's value in each iteration."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    with with_hydra():
        cfg = compose(
            "config",
            overrides=[
                f"trainer.device={device}",
                f"trainer.precision={precision}",
                f"trainer.max_iters={iters}",
                "data.val=null",
                "hooks=+ema+grad_norm+throughput+check_invalid_loss",
                f"hooks.logger.interval={INTERVAL}",
                f"hooks.check_invalid_loss.interval={REPORTS}",
                *workloads.NO_SAVES,
            ],
        )
    with counted_waits() as waits:
        runner = build_runner(cfg, workloads.folder())
        trace = PerIteration(waits)
        runner.hooks.register(trace, "trace")
        if device == "cuda":
            runner.hooks.register(Forbidden(INTERVAL, precision == "fp16"), "forbidden")
        with workloads.quiet():
            runner.run("train")
    return trace.seen


def row(name: str, seen: list[Waits], target: str) -> tuple[str, ...]:
    most = max((counts.total() for counts in seen), default=0)
    where: Waits = sum(seen, Counter())
    places = ", ".join(sorted({f"{method} in {file}" for method, file in where}))
    return name, str(len(seen)), str(most), target, places or "-"


def main() -> None:
    arguments = timing.arguments(__doc__, iters=200)
    torch.set_num_threads(1)
    workloads.set_up_logging()
    timing.print_environment()
    for precision in ("fp32", "fp16") if torch.cuda.is_available() else ("fp32",):
        seen = waits_of(precision, arguments.iters)
        numbered = list(enumerate(seen, start=1))
        per_step = " (one per step)" if precision == "fp16" else ""
        rows = [
            row("between", [s for n, s in numbered if n % INTERVAL], f"0{per_step}"),
            row(
                "at a log point", [s for n, s in numbered if not n % INTERVAL and n % REPORTS], "1"
            ),
            row("  with a report of bad losses", [s for n, s in numbered if not n % REPORTS], ""),
        ]
        columns = (f"host waits for device, {precision}", "iterations", "most", "target", "where")
        timing.print_table(columns, rows)


if __name__ == "__main__":
    main()

"""Whether the cost of our hooks grows with the model: a small ResNet against the tiny MLP.

    python tests/bench/realistic_step.py
    python tests/bench/realistic_step.py --window 10     # on a machine that is busy

The ResNet has 65 parameter tensors and takes 32x32 images, 64 at a time, on one CPU thread. A step
of it takes so long that its own scatter hides microseconds. So the cost is also taken with the
forward pass replaced by a loss of a single weight, with the same model, optimizer, hooks and
batches: what is left is the work of the host, with whatever of it grows with the model.
"""

from __future__ import annotations

from dataclasses import replace

import timing
import torch
from peers import installed, lightning_us, mmengine_us
from workloads import NO_SAVES, REALISTIC, REALISTIC_STANDING, TINY, bare_us, our_us


def main() -> None:
    arguments = timing.arguments(__doc__, iters=3000, real_iters=16, window=100, repeats=5)
    torch.set_num_threads(1)
    tiny = replace(TINY, window=arguments.window)
    standing = replace(REALISTIC_STANDING, window=arguments.window)
    counts = {tiny: arguments.iters, standing: arguments.iters, REALISTIC: arguments.real_iters}
    cases = {}
    for workload, iters in counts.items():
        cases["bare", workload] = lambda w=workload, n=iters: bare_us(w, n, True)
        cases["ours", workload] = lambda w=workload, n=iters: our_us(w, n, *NO_SAVES)
    if not arguments.no_peers:
        few = max(arguments.iters // 5, 3 * arguments.window)
        for name, measure in (("MMEngine", mmengine_us), ("Lightning", lightning_us)):
            if installed()[name]:
                cases[name, standing] = lambda f=measure: f(standing, few)
    per_iter = timing.least_by_turns(cases, arguments.repeats)
    timing.print_environment()
    rows = []
    least_beyond = per_iter["ours", tiny] - per_iter["bare", tiny]
    for name, workload in (
        ("tiny MLP", tiny),
        ("ResNet's parameters, no forward pass", standing),
        ("ResNet", REALISTIC),
    ):
        bare, ours = per_iter["bare", workload], per_iter["ours", workload]
        beyond = f"{ours - bare:+.1f}"
        target = {tiny: "", standing: f"{least_beyond:+.1f}"}.get(workload, "(scatter)")
        rows.append((name, f"{bare:.1f}", f"{ours:.1f}", beyond, f"{ours / bare:.3f}", target))
    for (name, workload), cost in per_iter.items():
        if name not in ("bare", "ours"):
            bare = per_iter["bare", workload]
            cells = f"{bare:.1f}", f"{cost:.1f}", f"{cost - bare:+.1f}", f"{cost / bare:.3f}", ""
            rows.append((f"  the same by {name}", *cells))
    columns = ("per iteration, default hooks", "bare, us", "with, us", "beyond, us", "ratio")
    timing.print_table((*columns, "target, us"), rows)


if __name__ == "__main__":
    main()

"""Hooks that decide something decide it alike on all ranks: two real processes over gloo."""

from __future__ import annotations

from pathlib import Path

import torch
import torch.distributed as td
import torch.multiprocessing as mp
from hydra import compose, initialize_config_dir

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp import dist
from hookexp.build import build_runner
from hookexp.compose.conf_dir import conf_dir
from hookexp.hook import Hook, Priority

RUNS = {
    "guard": (
        "hooks=+check_invalid_loss-checkpoint",
        "hooks.check_invalid_loss.action=stop",
        "hooks.check_invalid_loss.interval=3",
    ),
    "limit": ("hooks=+time_limit-checkpoint", "hooks.time_limit.interval=4"),
    "search": ("hooks=+lr_finder-param_scheduler-checkpoint", "hooks.lr_finder.num_iters=20"),
}


class Poison(Hook):
    """One loss of the second rank that is not finite, with gradients that are."""

    priority = Priority.HIGHEST

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        outputs["other_loss"] = torch.tensor(
            torch.nan if runner.iter == 1 and runner.rank == 1 else 0.0
        )


class Steps(Hook):
    """The first weights after each step."""

    def __init__(self):
        self.weights = []

    def after_optim_step(self, runner):
        self.weights.append(next(runner.model.parameters()).detach().flatten()[:5].tolist())


def train_as(rank, folder):
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    told = {name: train(name, rank, Path(folder) / f"{name}_{rank}") for name in RUNS}
    torch.save(told, Path(folder) / f"told_{rank}.pt")
    dist.close()


def train(name, rank, work_dir):
    """Where the run ended and why, its weights after each step, and the losses of a search."""
    work_dir.mkdir()
    words = ["trainer.device=cpu", "sinks=none", "model.width=4", "data.batch_size=64"]
    if name == "limit":
        words.append(f"hooks.time_limit.minutes={1e-9 if rank == 0 else 1000}")
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        cfg = compose("config", overrides=[*RUNS[name], *words, "trainer.max_iters=40"])
    runner = build_runner(cfg, work_dir)
    steps = Steps()
    runner.register_hook(steps)
    if name == "guard":
        runner.register_hook(Poison())
    runner.run("train")
    losses = runner.hooks["lr_finder"]._losses if name == "search" else []
    return [runner.iter, runner.state.stop_reason, steps.weights, losses]


def test_ranks_hold_back_stop_and_search_together(tmp_path):
    mp.spawn(train_as, (str(tmp_path),), nprocs=2)
    ours, theirs = (torch.load(tmp_path / f"told_{rank}.pt") for rank in (0, 1))
    iterations, reason, weights, _ = ours["guard"]
    assert ours["guard"] == theirs["guard"]
    assert "not finite at iteration 2 (loss)" in reason
    assert iterations == 3
    assert weights[0] == weights[1] != weights[2]
    assert [told["limit"][0] for told in (ours, theirs)] == [4, 4]
    assert "time limit" in ours["limit"][1]
    assert ours["search"] == theirs["search"]
    assert len(ours["search"][3]) == ours["search"][0]

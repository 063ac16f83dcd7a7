"""Buffers of two ranks after they met: two real processes that talk over gloo."""

from __future__ import annotations

import inspect
from pathlib import Path

import torch
import torch.distributed as td
import torch.multiprocessing as mp
from fakes import Recorder
from hydra import compose
from omegaconf import OmegaConf

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp import dist
from hookexp.build import build_runner
from hookexp.compose.conf_dir import conf_dir, with_hydra
from hookexp.compose.instantiate import instantiate
from hookexp.hook import Hook, Priority
from hookexp.hooks import sync_buffers
from hookexp.hooks.sync_buffers import SyncBuffersHook


class Buffers(Hook):
    """The buffers that each mount point sees, before and after the hooks of NORMAL."""

    def __init__(self, before_others, points):
        self.priority = Priority.HIGHEST if before_others else Priority.LOWEST
        self.points = points
        self.seen = []

    def get_triggered_stages(self):
        return self.points

    def after_train_epoch(self, runner):
        self.seen.append([b.clone() for b in runner.model.buffers()])

    def before_val(self, runner):
        self.seen.append([b.clone() for b in runner.model.buffers()])


RUNS = {
    "after_train_epoch": ("trainer.max_epochs=2",),
    "before_val": ("trainer.max_iters=4", "trainer.val_interval=2"),
}
"""Two runs of the real config, and the mount point at which each has to synchronise."""


RESUMED = {
    "inside a window": (4, "trainer.val_interval=5", "hooks.optimizer.cumulative_iters=3"),
    "at a validation": (3, "trainer.val_interval=3"),
}
"""Where a run is stopped that goes on afterwards, and what it is a run of."""


class Stop(Hook):
    def __init__(self, iteration):
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            runner.state.stop("told to", urgent=True)


def train_as(rank, folder):
    """All runs as one of two ranks; leaves what its buffers were before and after the hook."""
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    for point in RUNS:
        train_until_synced(point, Path(folder) / f"{point}_{rank}")
    for name, (stop, *words) in RESUMED.items():
        cut, words = (
            Path(folder) / f"{name} cut",
            [*words, "trainer.max_iters=6", "trainer.limit_val_batches=1"],
        )
        whole = train(words, Path(folder) / f"{name} whole")
        train(words, cut, Stop(stop))
        resumed = train([*words, "resume=auto"], cut)
        torch.save([whole, resumed], Path(folder) / f"{name}_{rank}.pt")
    of_this_rank = [torch.tensor([rank + 5]), torch.tensor(float(rank)), torch.tensor(rank == 0)]
    sync_buffers._average_over_ranks(of_this_rank)
    torch.save(of_this_rank, Path(folder) / f"kinds_{rank}.pt")
    dist.close()


def build(words, work_dir):
    work_dir.mkdir(exist_ok=True)
    small = ["trainer.device=cpu", "sinks=none", "model.width=4", "data.batch_size=256"]
    with with_hydra():
        cfg = compose("config", overrides=["hooks=+sync_buffers", *small, *words])
    return build_runner(cfg, work_dir)


def train(words, work_dir, *hooks):
    """The weights and the metrics at the end."""
    runner = build(words, work_dir)
    for hook in hooks:
        runner.register_hook(hook)
    metrics = runner.run("train").metrics
    return {**dist.unwrap(runner.model).state_dict(), "metrics": metrics}


def train_until_synced(point, work_dir):
    runner = build(RUNS[point], work_dir)
    probes = [Buffers(True, [point]), Buffers(False, [point])]
    for number, probe in enumerate(probes):
        runner.register_hook(probe, name=f"probe_{number}")
    at_forward = []
    norm = next(m for m in runner.model.modules() if isinstance(m, torch.nn.BatchNorm2d))
    norm.register_forward_pre_hook(lambda norm, _: at_forward.append(norm.running_mean.clone()))
    runner.run("train")
    torch.save([probe.seen for probe in probes], work_dir / "buffers.pt")
    torch.save(at_forward, work_dir / "at_forward.pt")


def assert_averaged(ranks):
    (before_0, after_0), (before_1, after_1) = ranks
    assert len(after_0) == len(after_1) > 0
    differed = False
    for at_point in zip(before_0, before_1, after_0, after_1, strict=True):
        for b0, b1, a0, a1 in zip(*at_point, strict=True):
            assert torch.equal(a0, a1)
            if a0.is_floating_point():
                assert torch.allclose(a0, (b0 + b1) / 2)
                differed |= not torch.equal(b0, b1)
            else:
                assert torch.equal(a0, b0)
    assert differed, "the ranks never saw different data, so this shows nothing"


def test_two_ranks_have_the_mean_also_of_a_run_that_was_resumed(tmp_path):
    mp.start_processes(train_as, (str(tmp_path),), nprocs=2, start_method="spawn")
    for point in RUNS:
        ranks = [torch.load(tmp_path / f"{point}_{rank}" / "buffers.pt") for rank in range(2)]
        assert len(ranks[0][0]) == 2
        assert_averaged(ranks)
        ours, theirs = (
            torch.load(tmp_path / f"{point}_{rank}" / "at_forward.pt") for rank in range(2)
        )
        assert len(ours) > 4
        for one, two in zip(ours, theirs, strict=True):
            assert torch.equal(one, two), "only a last step's batches are averaged"
    for name in RESUMED:
        for rank in range(2):
            whole, resumed = torch.load(tmp_path / f"{name}_{rank}.pt")
            assert whole.pop("metrics") == resumed.pop("metrics"), name
            for key, value in whole.items():
                assert torch.equal(value, resumed[key]), (name, key)
    for rank in range(2):
        integer, number, flag = torch.load(tmp_path / f"kinds_{rank}.pt")
        assert (integer.item(), number.item(), flag.item()) == (5, 0.5, True)


class Counting(SyncBuffersHook):
    def __init__(self):
        super().__init__()
        self.synced_at = []

    def _sync(self, runner):
        super()._sync(runner)
        self.synced_at.append(runner.iter)


def test_a_validation_right_after_an_epoch_does_not_do_it_again(make_runner):
    hook = Counting()
    make_runner({"sync_buffers": hook}, max_epochs=2).run("train")
    assert hook.synced_at == [3, 6]
    hook = Counting()
    make_runner({"sync_buffers": hook}, max_iters=4, val_interval=2).run("train")
    assert hook.synced_at == [2, 4]


def test_alone_it_changes_nothing(make_runner):
    one = make_runner({"sync_buffers": SyncBuffersHook()}, max_epochs=2)
    one.run("train")
    other = make_runner({"recorder": Recorder()}, max_epochs=2)
    other.run("train")
    for ours, theirs in zip(one.model.buffers(), other.model.buffers(), strict=True):
        assert torch.equal(ours, theirs)


def test_a_validation_that_is_run_again_finds_them_in_step(make_runner):
    hook = Counting()
    make_runner({"sync_buffers": hook}, max_epochs=1).run("train")
    again = Counting()
    again.load_state_dict(hook.state_dict())
    runner = make_runner({"sync_buffers": again}, max_epochs=1)
    runner.state.iter = 3
    runner.run("val")
    assert again.synced_at == []


def test_the_config_shows_every_parameter_with_its_default():
    config = OmegaConf.load(conf_dir() / "hooks" / "sync_buffers" / "default.yaml")
    assert config.pop("priority") is None
    made, by_default = instantiate(config, "hooks.sync_buffers"), SyncBuffersHook()
    for name, value in vars(by_default).items():
        assert name.startswith("_") or getattr(made, name) == value
    assert set(config) == {"_target_", *inspect.signature(SyncBuffersHook).parameters}
    assert SyncBuffersHook.priority == Priority.NORMAL


def test_buffers_of_any_kind_and_shape_keep_their_place(tmp_path):
    kinds = [
        torch.randn(3, 4).T,
        torch.tensor(7),
        torch.randn(()),
        torch.randn(2, dtype=torch.float64),
        torch.randn(2, dtype=torch.complex64),
        torch.tensor([True, False]),
        torch.randn(5),
        torch.empty(0),
    ]
    before = [kind.clone() for kind in kinds]
    td.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    try:
        sync_buffers._average_over_ranks(kinds)
    finally:
        dist.close()
    for old, new in zip(before, kinds, strict=True):
        assert torch.equal(old, new)

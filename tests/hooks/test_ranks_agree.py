"""What hooks decide and compute is the same on all ranks: two real processes over gloo."""

from __future__ import annotations

import copy
import os
import signal
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as td
import torch.multiprocessing as mp
from hydra import compose

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp import dist
from hookexp.build import build_runner
from hookexp.compose.conf_dir import with_hydra
from hookexp.data.loader import apart
from hookexp.hook import Hook, Priority

NO_SAVES = (
    "hooks.checkpoint.interval=-1",
    "hooks.checkpoint.save_last=false",
    "trainer.val_interval=40",
)
RUNS = {
    "guard": (
        "hooks=+check_invalid_loss-checkpoint",
        "hooks.check_invalid_loss.action=stop",
        "hooks.check_invalid_loss.interval=3",
    ),
    "limit": ("hooks=+time_limit", "data.batch_size=300"),
    "signal": (),
    "signal in validation": ("trainer.val_interval=3",),
    "clock": NO_SAVES,
    "stop of one": (),
    "stop of all": (),
    "save of one": NO_SAVES,
    "save of all": NO_SAVES,
    "search": ("hooks=+lr_finder-param_scheduler-checkpoint", "hooks.lr_finder.num_iters=20"),
    "freeze": (
        "hooks=+freeze+precise_bn-checkpoint",
        "hooks.freeze.params=[features.0,features.1]",
        "hooks.freeze.until_iter=3",
        "hooks.precise_bn.num_batches=2",
        "trainer.val_interval=3",
    ),
    "sam": ("hooks/optimizer=sam", "hooks=-checkpoint", "hooks.optimizer.rho=0.5"),
}
NUM_ITERS = {"freeze": 6, "sam": 2}


class Poison(Hook):
    """One loss of the second rank that is not finite, with gradients that are."""

    priority = Priority.HIGHEST

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        outputs["other_loss"] = torch.tensor(
            torch.nan if runner.iter == 1 and runner.rank == 1 else 0.0
        )


class Signal(Hook):
    """One that the second rank alone has, in its fourth iteration."""

    priority = Priority.LOWEST

    def __init__(self):
        self.exit_code = None

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and runner.iter == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    def after_run(self, runner):
        self.exit_code = runner.state.exit_code


class SignalInValidation(Hook):
    """One that the second rank alone has, at the first batch of a validation."""

    def __init__(self):
        self.num_validated = 0

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        if runner.rank == 1 and batch_idx == 0:
            os.kill(os.getpid(), signal.SIGTERM)

    def after_val(self, runner):
        self.num_validated += 1


class Saves(Hook):
    """At which iterations a checkpoint was collected."""

    def __init__(self):
        self.iterations = []

    def before_save_checkpoint(self, runner, checkpoint):
        self.iterations.append(runner.iter)


class SavesAlone(Saves):
    """One that the first rank alone asks for, in its fourth iteration."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.rank == 0 and runner.iter == 3:
            runner.save_checkpoint("mine.pth")


class SavesWithAll(Saves):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 3:
            runner.save_checkpoint("mine.pth")


class StopsAlone(Hook):
    """What the first rank alone knows, in its fourth iteration."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.rank == 0 and runner.iter == 3:
            runner.state.stop("bad")


class StopsWithAll(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 3:
            runner.train_loop.stop_training = True
            assert runner.train_loop.stop_training


class Steps(Hook):
    """The first weights after each step."""

    def __init__(self):
        self.weights = []

    def after_optim_step(self, runner):
        self.weights.append(next(runner.model.parameters()).detach().flatten()[:5].tolist())


class Sharpest(Hook):
    """How far the gradient stepped with is from the mean over ranks of those at `w + e(w)`."""

    priority = Priority.HIGHEST

    def __init__(self):
        self.errors = []
        self.spread = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        model = copy.deepcopy(dist.unwrap(runner.model))
        weights = list(model.parameters())
        first = torch.autograd.grad(runner.task.train_step(model, data_batch)["loss"], weights)
        length = torch.cat([g.flatten() for g in first]).norm()
        with torch.no_grad():
            for weight, gradient in zip(weights, first, strict=True):
                weight += 0.5 * gradient / length
        loss = runner.task.train_step(model, data_batch)["loss"]
        own = torch.cat([g.flatten() for g in torch.autograd.grad(loss, weights)])
        self.expected = over_ranks(own)
        self.spread.append((own - self.expected).abs().max().item())

    def before_optim_step(self, runner):
        gradient = torch.cat([p.grad.flatten() for p in runner.model.parameters()])
        self.errors.append((gradient - self.expected).abs().max().item())


class Statistics(Hook):
    """Batch norms at each validation, and those of this rank's batches averaged by hand."""

    priority = Priority.LOWEST

    def __init__(self):
        self.frozen, self.learning, self.by_hand, self.own = [], [], [], []

    def before_val_epoch(self, runner):
        features = dist.unwrap(runner.model).features
        self.frozen.append(features[1].running_mean.clone())
        self.learning.append(features[4].running_mean.clone())
        model = copy.deepcopy(features).train()
        for norm in model:
            if isinstance(norm, torch.nn.BatchNorm2d):
                norm.reset_running_stats()
                norm.momentum = None
        if runner.iter == 3:
            model[1] = copy.deepcopy(features[1]).eval()
        batches = apart(runner.train_dataloader, runner.state.batch_in_epoch)
        with torch.no_grad():
            for images, _ in islice(batches, 2):
                model(images)
        self.own.append(model[4].running_mean.clone())
        self.by_hand.append(over_ranks(model[4].running_mean))


PROBES = {
    "guard": Poison,
    "freeze": Statistics,
    "sam": Sharpest,
    "signal": Signal,
    "clock": Saves,
    "signal in validation": SignalInValidation,
    "stop of one": StopsAlone,
    "stop of all": StopsWithAll,
    "save of one": SavesAlone,
    "save of all": SavesWithAll,
}


def over_ranks(tensor):
    """The mean of a tensor over ranks."""
    mean = tensor.clone()
    td.all_reduce(mean)
    return mean / td.get_world_size()


def train_as(rank, folder):
    torch.set_num_threads(1)
    td.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    told = {name: train(name, rank, Path(folder) / f"{name}_{rank}") for name in RUNS}
    torch.save(told, Path(folder) / f"told_{rank}.pt")
    dist.close()


def train(name, rank, work_dir):
    """Where the run ended and why, its weights after each step, and what its probe wrote down."""
    work_dir.mkdir()
    words = ["trainer.device=cpu", "sinks=none", "model.width=4", "model.dropout=0"]
    words += [f"trainer.max_iters={NUM_ITERS.get(name, 40)}"]
    if name == "limit":
        words.append(f"hooks.time_limit.minutes={1e-9 if rank == 0 else 1000}")
    if name == "clock":
        words.append(f"hooks.checkpoint.every_n_minutes={1e-9 if rank == 0 else 1000}")
    with with_hydra():
        cfg = compose("config", overrides=["data.batch_size=64", *RUNS[name], *words])
    runner = build_runner(cfg, work_dir)
    steps, probe = Steps(), PROBES.get(name, Hook)()
    runner.register_hook(steps)
    runner.register_hook(probe)
    runner.run("train")
    told = runner.hooks["lr_finder"]._losses if name == "search" else vars(probe)
    return [runner.iter, runner.state.stop_reason, steps.weights, told]


def test_ranks_hold_back_stop_and_search_together(tmp_path):
    mp.spawn(train_as, (str(tmp_path),), nprocs=2)
    ours, theirs = (torch.load(tmp_path / f"told_{rank}.pt") for rank in (0, 1))
    iterations, reason, weights, _ = ours["guard"]
    assert ours["guard"] == theirs["guard"]
    assert "not finite at iteration 2 (loss)" in reason
    assert iterations == 3
    assert weights[0] == weights[1] != weights[2]
    assert ours["limit"][0] == theirs["limit"][0] < 10
    assert "time limit" in ours["limit"][1] and ours["limit"][1] == theirs["limit"][1]
    assert ours["signal"] == theirs["signal"]
    iterations, reason, _, told = ours["signal"]
    assert 3 < iterations < 40 and reason == "SIGTERM" and told == {"exit_code": 143}
    assert ours["signal in validation"] == theirs["signal in validation"]
    iterations, reason, _, told = ours["signal in validation"]
    assert (iterations, reason, told) == (3, "SIGTERM", {"num_validated": 0})
    assert ours["clock"] == theirs["clock"]
    assert ours["clock"][0] == 40 and ours["clock"][3]["iterations"][0] == 1
    for name in ("stop of one", "stop of all", "save of one", "save of all"):
        assert ours[name] == theirs[name], name
    assert 4 < ours["stop of one"][0] < 40 and ours["stop of one"][1] == "bad"
    assert ours["stop of all"][0] == 4
    (saved_at,) = ours["save of one"][3]["iterations"]
    assert 4 < saved_at < 40 and (tmp_path / "save of one_0" / "mine.pth").exists()
    assert ours["save of all"][3]["iterations"] == [4]
    assert ours["search"] == theirs["search"]
    assert len(ours["search"][3]) == ours["search"][0]
    assert_sharpness_is_met(ours["sam"], theirs["sam"])
    assert_frozen_until_three(ours["freeze"], theirs["freeze"])


def assert_sharpness_is_met(ours, theirs):
    assert ours[2] == theirs[2] and len(ours[2]) == 2
    for told in (ours[3], theirs[3]):
        assert max(told["errors"]) < 1e-5 < 1e-3 < min(told["spread"])


def assert_frozen_until_three(ours, theirs):
    first = ours[2]
    assert first == theirs[2] and len(first) == 6
    assert first[0] == first[1] == first[2] != first[3]
    for told in (ours[3], theirs[3]):
        assert torch.equal(told["frozen"][0], torch.zeros(4))
        assert told["frozen"][1].abs().max() > 0
        for norm, by_hand, own in zip(told["learning"], told["by_hand"], told["own"], strict=True):
            assert torch.allclose(norm, by_hand, atol=1e-6)
            assert not torch.allclose(norm, own, atol=1e-4)

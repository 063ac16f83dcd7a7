"""Generators that the model, the task, its loss and hooks keep go on after a resume."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from fakes import TinyModel, TinyTask
from torch import nn

from hookexp.checkpoint.reading import load_checkpoint
from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.precise_bn import PreciseBnHook


class Dropping(TinyModel):
    """Drops inputs in training by a generator of its own."""

    def __init__(self):
        super().__init__()
        self.inner.generator = torch.Generator().manual_seed(1)

    def forward(self, inputs):
        if self.training:
            kept = torch.rand(inputs.shape, generator=self.inner.generator) < 0.7
            inputs = inputs * kept
        return super().forward(inputs)


class NoisyLoss(nn.Module):
    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, outputs, targets):
        return (outputs - targets + self.generator.normal()).square().mean()


class NoisyTask(TinyTask):
    """Its training and its validation draw from generators of their own."""

    def __init__(self, generator):
        super().__init__()
        self.loss = NoisyLoss(generator)
        self.chance = random.Random(3)

    def train_step(self, model, batch):
        scale = self.chance.random()
        return {"loss": scale * self.loss(model(batch[0]), batch[1])}

    def val_step(self, model, batch):
        self.chance.random()
        return super().val_step(model, batch)


class Noise(Hook):
    """Draws for each batch, from a generator that it has no state for."""

    def __init__(self):
        self.generator = torch.Generator().manual_seed(7)

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        data_batch[0].add_(torch.randn(1, generator=self.generator))


class Stop(Hook):
    def __init__(self, point, iteration):
        self.point, self.iteration = point, iteration

    def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, mode="train"):
        if mode == self.point and runner.iter == self.iteration and not runner.resumed:
            runner.state.stop("told to", urgent=True)


IN_TRAINING, IN_VALIDATION = ("train", 3), ("val", 3)


def run(make_runner, folder, hooks, generator, **more):
    torch.manual_seed(0)
    runner = make_runner(
        {"checkpoint": CheckpointHook(interval=100), "noise": Noise(), **hooks},
        model=Dropping(),
        task=NoisyTask(generator),
        work_dir=folder,
        val_size=16,
        max_epochs=2,
        **more,
    )
    runner.run("train")
    return runner


@pytest.mark.parametrize(
    ("make", "stop"),
    [
        (np.random.PCG64, IN_TRAINING),
        (np.random.PCG64, IN_VALIDATION),
        (np.random.MT19937, IN_TRAINING),
        (np.random.Philox, IN_TRAINING),
        (np.random.SFC64, IN_TRAINING),
        (np.random.RandomState, IN_TRAINING),
    ],
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(make_runner, tmp_path, make, stop):
    def generator():
        return make(5) if make is np.random.RandomState else np.random.Generator(make(5))

    run(make_runner, tmp_path / "whole", {}, generator())
    run(make_runner, tmp_path / "cut", {"stop": Stop(*stop)}, generator())
    run(make_runner, tmp_path / "cut", {}, generator(), resume="auto")
    whole, resumed = (load_checkpoint(tmp_path / name / "epoch_2.pth") for name in ("whole", "cut"))
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][name]), name


def test_precise_bn_does_not_move_them(make_runner, tmp_path):
    plain, other = (
        run(make_runner, tmp_path / name, hooks, np.random.default_rng(5))
        for name, hooks in (("plain", {}), ("other", {"precise_bn": PreciseBnHook()}))
    )
    assert all(map(torch.equal, plain.model.parameters(), other.model.parameters()))


def test_one_that_has_become_another_is_said_to_begin_anew(make_runner, tmp_path, caplog):
    run(make_runner, tmp_path, {"stop": Stop(*IN_TRAINING)}, np.random.default_rng(5))
    caplog.clear()
    run(make_runner, tmp_path, {}, np.random.RandomState(5), resume="auto")
    told = [message for message in caplog.messages if "generator" in message]
    assert told == [
        "task.loss.generator is not the generator that it was in the checkpoint, and begins anew"
    ]

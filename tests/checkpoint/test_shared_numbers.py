"""A number of a class or a module that changes in training is in no checkpoint: it is told."""

from __future__ import annotations

import pytest
from fakes import TinyModel, TinyTask

from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook

NUM_STEPS = 0
NAMES = ["a"]


class OfModule(TinyTask):
    def train_step(self, model, batch):
        global NUM_STEPS
        NUM_STEPS += 1
        return super().train_step(model, batch)


class OfClass(TinyModel):
    num_calls, is_known = 0, False

    def forward(self, inputs):
        OfClass.num_calls += 1
        OfClass.is_known = True
        return super().forward(inputs)


class OfHook(Hook):
    total = 0.5

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        type(self).total *= 2


@pytest.fixture
def told(make_runner, caplog):
    def run(hooks=None, **parts):
        hooks = {"checkpoint": CheckpointHook(by_epoch=False), **(hooks or {})}
        make_runner(hooks, max_epochs=2, **parts).run("train")
        return [m for m in caplog.messages if "no checkpoint holds" in m]

    return run


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: {"task": OfModule()}, f"{__name__}.NUM_STEPS"),
        (lambda: {"model": OfClass()}, "OfClass.num_calls"),
        (lambda: {"hooks": {"mine": OfHook()}}, "OfHook.total"),
    ],
)
def test_it_is_told_once(told, make, name):
    (message,) = told(**make())
    assert message.startswith(f"{name} changes in training, ")


def test_nothing_is_told_of_what_stays(told):
    assert told() == []

"""A hook that keeps something and does not save it is told, once."""

from __future__ import annotations

import copy

import pytest
import torch
from torch.optim.swa_utils import AveragedModel

from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.throughput import ThroughputHook


class Counts(Hook):
    def __init__(self):
        self.count, self.losses, self.factor, self.began = 0, [], 2.0, None

    def before_train(self, runner):
        self.began = runner.iter

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.count += 1
        self.losses.append(outputs["loss"].detach())


class Saves(Counts):
    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


class Times(ThroughputHook):
    """One of ours, which keeps times of its own."""


class OfAnotherProgram:
    def __init__(self):
        self.count = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.count += 1


class Averages(Hook):
    """Weights in a module, as torch's averages are; made when training begins, or later."""

    def __init__(self, makes_late=False):
        self.makes_late = makes_late
        self.averages = None

    def before_train(self, runner):
        if not self.makes_late:
            self.averages = AveragedModel(runner.model)

    def after_train_epoch(self, runner):
        if self.averages is None:
            self.averages = AveragedModel(runner.model)
        self.averages.update_parameters(runner.model)


class Teaches(Hook):
    """Weights in a list, moved through `.data`."""

    def before_train(self, runner):
        self.teachers = [copy.deepcopy(runner.model)]

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        for ours, theirs in zip(
            self.teachers[0].parameters(), runner.model.parameters(), strict=True
        ):
            ours.data.lerp_(theirs.data, 0.1)


class Looks(Hook):
    """At the model that is trained, at a part of it, and by one that stays as it is."""

    def before_train(self, runner):
        self.model, self.parts = runner.model, {"inner": runner.model.inner}
        self.first, self.fixed = next(runner.model.parameters()), torch.nn.Linear(2, 2)


class Constant(Hook):
    def __init__(self):
        self.factor, self.names, self.began = 2.0, ["a"], None

    def before_train(self, runner):
        self.began = runner.iter


def told(make_runner, caplog, hook):
    hooks = {"checkpoint": CheckpointHook(), "mine": hook}
    with caplog.at_level("WARNING"):
        make_runner(hooks, max_epochs=3).run("train")
    return [message for message in caplog.messages if message.startswith("hooks.mine")]


def test_what_a_hook_changes_and_does_not_save_is_told_once(make_runner, caplog):
    (message,) = told(make_runner, caplog, Counts())
    assert message.startswith("hooks.mine: Counts changes count, losses and has no state_dict")


@pytest.mark.parametrize(
    ("make", "what"),
    [
        (Averages, "averages"),
        (lambda: Averages(makes_late=True), "averages"),
        (Teaches, "teachers"),
    ],
)
def test_weights_that_a_hook_moves_are_told_once(make_runner, caplog, make, what):
    (message,) = told(make_runner, caplog, make())
    assert f" changes {what} and has no state_dict" in message


@pytest.mark.parametrize("make", [Saves, Times, OfAnotherProgram, Constant, Looks])
def test_nothing_is_told_where_it_is_saved_or_nobody_can_say(make_runner, caplog, make):
    assert told(make_runner, caplog, make()) == []

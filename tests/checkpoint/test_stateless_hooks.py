"""A hook that keeps something and does not save it is told, once."""

from __future__ import annotations

import pytest

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


@pytest.mark.parametrize("make", [Saves, Times, OfAnotherProgram, Constant])
def test_nothing_is_told_where_it_is_saved_or_nobody_can_say(make_runner, caplog, make):
    assert told(make_runner, caplog, make()) == []

"""Objects that have more than values, such as a generator, come back attribute by attribute."""

from __future__ import annotations

import copy
import logging
import random
import threading
import weakref
from argparse import Namespace
from array import array
from collections import UserDict, UserList
from functools import partial
from itertools import count
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fakes import StopAt, TinyModel, TinyTask

from hookexp.checkpoint.own_objects import objects_in
from hookexp.checkpoint.reading import load_checkpoint
from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook


class World:
    """What an agent lives in; draws from a generator of its own."""

    def __init__(self, seed=3):
        self.chance, self.place, self.steps = random.Random(seed), [0.0], 0
        self.reward = lambda place: 1 + abs(place)

    def step(self):
        self.steps += 1
        self.place = [self.place[0] / 2 + self.chance.random()]
        return self.reward(self.place[0]) * (1 + self.steps % 3)


class InWorlds(TinyTask):
    def __init__(self):
        super().__init__()
        self.worlds = [World(1), World(2)]

    def train_step(self, model, batch):
        return {"loss": super().train_step(model, batch)["loss"] * self.worlds[1].step()}


class Average:
    """Of the weights of a model that it keeps, as many write it."""

    def __init__(self, model):
        self.model = model
        self.shadow = {name: p.detach().clone() for name, p in model.named_parameters()}

    def update(self):
        for name, parameter in self.model.named_parameters():
            self.shadow[name] = 0.9 * self.shadow[name] + 0.1 * parameter.detach()


class Averaged(TinyTask):
    def setup(self, runner):
        self.average = Average(runner.model)

    def train_step(self, model, batch):
        self.average.update()
        pulls = (p - self.average.shadow[n] for n, p in model.named_parameters())
        pull = sum(distance.square().sum() for distance in pulls)
        return {"loss": super().train_step(model, batch)["loss"] + pull}


class Agent:
    """Learns beside the model."""

    def __init__(self, model):
        self.net = copy.deepcopy(model)
        self.optimizer = torch.optim.Adam(self.net.parameters(), 0.01)

    def learn(self, inputs):
        self.optimizer.zero_grad()
        self.net(inputs).square().mean().backward()
        self.optimizer.step()
        return self.net(inputs).detach()


class WithAgent(TinyTask):
    def setup(self, runner):
        self.agent = Agent(runner.model)

    def train_step(self, model, batch):
        hint = self.agent.learn(batch[0])
        return {"loss": (model(batch[0]) - hint).square().mean()}


class Draws(TinyTask):
    """From generators in a list and a dict."""

    def __init__(self):
        super().__init__()
        self.chances = [random.Random(1), np.random.default_rng(2)]
        self.by_name = {"noise": torch.Generator().manual_seed(3)}

    def train_step(self, model, batch):
        noise = torch.rand((), generator=self.by_name["noise"])
        share = self.chances[0].random() + self.chances[1].random() + noise
        return {"loss": super().train_step(model, batch)["loss"] * share}


class OfPython(TinyTask):
    """Counts in objects of Python's own classes."""

    def __init__(self):
        super().__init__()
        self.state, self.options = SimpleNamespace(steps=0, last=None), Namespace(scale=1.0)
        self.by_name, self.rows = UserDict(steps=0), UserList([0])

    def train_step(self, model, batch):
        self.state.steps += 1
        self.state.last = batch[0].mean()
        self.options.scale *= 0.9
        self.by_name["steps"] += self.state.steps
        self.rows.append(self.by_name["steps"])
        share = self.options.scale * (self.rows[-1] + self.state.last)
        return {"loss": super().train_step(model, batch)["loss"] * share}


class Remembers(TinyModel):
    """Its part has an object that leads back to it."""

    def __init__(self):
        super().__init__()
        self.inner.world = World()
        self.inner.world.owner = self

    def forward(self, inputs):
        share = self.inner.world.step() if self.training else 1
        return super().forward(inputs) * share


def trained(make_runner, folder, task, model=TinyModel, **more):
    torch.manual_seed(0)
    stop = more.pop("stop", 0)
    hooks = {"checkpoint": CheckpointHook(interval=100)}
    hooks |= {"stop": StopAt(stop)} if stop else {}
    runner = make_runner(hooks, task=task(), model=model(), work_dir=folder, max_epochs=2, **more)
    runner.run("train")
    return load_checkpoint(folder / "epoch_2.pth") if not stop else {}


CASES = [
    (InWorlds, TinyModel),
    (Averaged, TinyModel),
    (WithAgent, TinyModel),
    (Draws, TinyModel),
    (OfPython, TinyModel),
    (TinyTask, Remembers),
]


@pytest.mark.parametrize(("task", "model"), CASES)
def test_a_resumed_run_is_the_run_that_was_not_stopped(make_runner, tmp_path, caplog, task, model):
    whole = trained(make_runner, tmp_path / "whole", task, model)
    trained(make_runner, tmp_path / "cut", task, model, stop=3)
    resumed = trained(make_runner, tmp_path / "cut", task, model, resume="auto")
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][name]), name
    assert repr(whole["beside"]) == repr(resumed["beside"])
    assert not [m for m in caplog.messages if "changes in training" in m or "anew" in m]


class MakesItLate(TinyTask):
    def train_step(self, model, batch):
        if not hasattr(self, "world"):
            self.world = World()
        return {"loss": super().train_step(model, batch)["loss"] * self.world.step()}


def test_one_that_is_made_in_training_is_said_to_begin_anew(make_runner, tmp_path, caplog):
    every = {"checkpoint": CheckpointHook(interval=1, by_epoch=False)}
    make_runner(every, task=MakesItLate(), work_dir=tmp_path, max_epochs=1).run("train")
    task = MakesItLate()
    make_runner(every, task=task, work_dir=tmp_path, max_epochs=2, resume="auto").run("train")
    assert "task.world is not what it was in the checkpoint, and begins anew" in caplog.messages


class LivesInAWorld(Hook):
    def __init__(self):
        self.world = World()

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.world.step()


def test_a_hook_is_told_what_its_object_changes(make_runner, tmp_path, caplog):
    hooks = {"checkpoint": CheckpointHook(), "lives": LivesInAWorld()}
    make_runner(hooks, work_dir=tmp_path, max_epochs=1).run("train")
    (told,) = [message for message in caplog.messages if "LivesInAWorld" in message]
    assert "changes world.place, world.steps" in told


class Guarded(World):
    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


class Node:
    """Of a tree that leads back to its root."""

    def __init__(self, parent):
        self.parent, self.children = parent, []


def paths_of(value):
    task = TinyTask()
    task.value = value
    return [path for path, _ in objects_in([("task", task)])]


def test_objects_in_objects_are_found_and_those_with_a_lock_left_alone():
    outer, guarded = World(), World()
    outer.inner, outer.again, guarded.inner = World(), outer, Guarded()
    assert paths_of(outer) == ["task.value", "task.value.inner"]
    assert paths_of({"one": [outer]}) == ["task.value.one.0", "task.value.one.0.inner"]
    assert paths_of(guarded) == paths_of(Guarded()) == []


@pytest.mark.parametrize(
    "there",
    [
        logging.getLogger("mine"),
        torch.utils.data.DataLoader([1, 2]),
        partial(max, 1),
        np.sin,
        weakref.ref(World),
        weakref.proxy(World),
        {torch.device("cpu"), torch.float32},
        count(),
    ],
)
def test_parts_that_stay_as_they_are_leave_an_object_open(there):
    world = World()
    world.there = there
    assert paths_of(world) == ["task.value"]


def test_a_weak_reference_is_no_iterator(make_runner, tmp_path, caplog):
    task, model = TinyTask(), TinyModel()
    task.model, task.world = weakref.proxy(model), World()
    task.world.task = weakref.proxy(task)
    hooks = {"checkpoint": CheckpointHook(interval=1, by_epoch=False)}
    make_runner(hooks, task=task, model=model, work_dir=tmp_path, max_epochs=1).run("train")
    assert "iterator" not in caplog.text


def test_what_is_large_or_deep_is_not_looked_into():
    root = Node(None)
    root.children = [Node(root) for _ in range(1000)]
    assert len(paths_of(root)) == 1001
    root.children[0].children = [Node(root) for _ in range(4000)]
    assert paths_of(root) == []
    chain = World()
    for _ in range(1000):
        chain, chain.following = World(), chain
    assert len(paths_of(chain)) == 0


class CountsInBytes(TinyTask):
    def __init__(self, counts):
        super().__init__()
        self.counts = counts

    def train_step(self, model, batch):
        self.counts[0] += 1
        return super().train_step(model, batch)


@pytest.mark.parametrize("counts", [bytearray(4), array("d", [0.0])])
def test_bytes_that_change_in_place_are_told(make_runner, tmp_path, caplog, counts):
    hooks = {"checkpoint": CheckpointHook(interval=1, by_epoch=False)}
    make_runner(hooks, task=CountsInBytes(counts), work_dir=tmp_path, max_epochs=1).run("train")
    assert f"task.counts ({type(counts).__name__}) changes in training" in caplog.text


class Grows(TinyTask):
    """A tree, from its root on."""

    def __init__(self):
        super().__init__()
        self.root = Node(None)

    def train_step(self, model, batch):
        node = self.root
        while len(node.children) > 1:
            node = node.children[0]
        node.children.append(Node(node))
        return super().train_step(model, batch)


def test_a_tree_that_grows_is_told_once(make_runner, tmp_path, caplog):
    hooks = {"checkpoint": CheckpointHook(interval=1, by_epoch=False)}
    make_runner(hooks, task=Grows(), work_dir=tmp_path, max_epochs=4).run("train")
    told = [message for message in caplog.messages if "changes in training" in message]
    assert [message.partition(" (")[0] for message in told] == ["task.root"]

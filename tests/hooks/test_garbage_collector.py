"""The collections of real runs, as Python itself reports them."""

from __future__ import annotations

import gc
import itertools
import os
import weakref

import pytest
from fakes import TinyData
from torch.utils.data import Dataset

from hookexp.data.loader import WorkerLoader
from hookexp.data.sampler import BatchSampler
from hookexp.hook import Hook, Priority
from hookexp.hooks.garbage_collector import GarbageCollectorHook


class Litter(Hook):
    """Makes many cycles in each batch, and sees who is still there and whether gc is on."""

    priority = Priority.HIGHEST

    def __init__(self):
        self.alive = []
        self.enabled = set()
        self.frozen = set()
        self._refs = []

    def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, mode="train"):
        self.enabled.add(gc.isenabled())
        self.frozen.add(gc.get_freeze_count() > 0)
        for _ in range(2000):
            node = type("Node", (), {})() if not self._refs else self._node()
            node.me = node
            self._refs.append(weakref.ref(node))
        self.alive.append((mode, sum(ref() is not None for ref in self._refs)))

    def _node(self):
        return type(self)._Node()

    class _Node:
        pass


@pytest.fixture
def collections():
    """The iteration and generation of each collection while it runs."""
    seen = []
    runners = []

    def note(phase, info):
        if phase == "start" and runners:
            seen.append((runners[0].iter, info["generation"]))

    gc.callbacks.append(note)
    yield seen, runners
    gc.callbacks.remove(note)


def run(make_runner, hook, litter, mode="train", **more):
    hooks = {"litter": litter, **({"gc": hook} if hook else {})}
    runner = make_runner(hooks, **{"max_epochs": 2, "train_size": 48, "val_size": 0, **more})
    runner.run(mode)
    return runner


def test_without_the_hook_python_collects_in_the_middle(make_runner):
    litter = Litter()
    run(make_runner, None, litter)
    alive = [number for _, number in litter.alive]
    assert any(now < before + 2000 for before, now in itertools.pairwise(alive))


def test_collections_are_at_fixed_iterations_and_before_epochs_only(make_runner, collections):
    seen, runners = collections

    class Arm(Hook):
        priority = Priority.HIGHEST

        def before_train_epoch(self, runner):
            runners.append(runner)

        def after_train(self, runner):
            runners.clear()

    hook = GarbageCollectorHook(interval=4, generation=1)
    runner = make_runner(
        {"arm": Arm(), "litter": Litter(), "gc": hook}, max_epochs=2, train_size=48, val_size=0
    )
    runner.run("train")
    # Two epochs of six batches: whole ones before each, young ones after the 4th, 8th and 12th.
    assert seen == [(0, 2), (3, 1), (6, 2), (7, 1), (11, 1)]


def test_cycles_go_at_the_collection_and_not_before(make_runner):
    litter = Litter()
    run(make_runner, GarbageCollectorHook(interval=4), litter, max_epochs=1)
    alive = [number for _, number in litter.alive]
    assert alive[:4] == [2000, 4000, 6000, 8000]
    assert alive[4] == 2000
    assert litter.enabled == {False}
    assert litter.frozen == {True}


def test_evaluations_are_collected_by_their_own_batches(make_runner):
    litter = Litter()
    runner = make_runner(
        {"litter": litter, "gc": GarbageCollectorHook(interval=2)}, val_size=32, train_size=8
    )
    runner.run("val")
    assert [number for _, number in litter.alive] == [2000, 4000, 2000, 4000]
    assert litter.frozen == {False}


@pytest.mark.parametrize("enabled", [True, False])
def test_afterwards_it_is_as_it_was(make_runner, enabled):
    (gc.enable if enabled else gc.disable)()
    try:
        run(make_runner, GarbageCollectorHook(), Litter())
        assert gc.isenabled() is enabled
        assert gc.get_freeze_count() == 0
    finally:
        gc.enable()


def test_after_an_error_too(make_runner):
    class Bomb(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            raise RuntimeError("boom")

    runner = make_runner({"gc": GarbageCollectorHook(), "bomb": Bomb()}, max_epochs=1)
    with pytest.raises(RuntimeError, match="boom"):
        runner.run("train")
    assert gc.isenabled()
    assert gc.get_freeze_count() == 0


def test_what_somebody_else_has_frozen_stays_frozen(make_runner):
    gc.freeze()
    try:
        frozen = gc.get_freeze_count()
        run(make_runner, GarbageCollectorHook(), Litter())
        assert gc.get_freeze_count() > 0.9 * frozen  # Some have died of old age.
    finally:
        gc.unfreeze()


def test_freeze_can_be_left_out(make_runner):
    litter = Litter()
    run(make_runner, GarbageCollectorHook(freeze=False), litter)
    assert litter.frozen == {False}


class TellsGc(Dataset):
    def __len__(self):
        return 8

    def __getitem__(self, index):
        inputs, targets = TinyData(8)[index]
        return inputs, targets * 0 + float(gc.isenabled())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="workers are not forked here")
def test_worker_processes_keep_the_automatic_collection(make_runner):
    told = []

    class Look(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            told.append((gc.isenabled(), data_batch[1].unique().tolist()))

    hooks = {"gc": GarbageCollectorHook(), "look": Look()}
    runner = make_runner(hooks, max_epochs=1, train_size=8, val_size=0)
    sampler = BatchSampler(8, 8, seed=0, shuffle=False)
    runner.train_loop.dataloader = WorkerLoader(
        TellsGc(), sampler, num_workers=1, multiprocessing_context="fork"
    )
    runner.run("train")
    assert told == [(False, [1.0])]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "interval=0: use a whole number of iterations"),
        ({"generation": 3}, "generation=3: use 0, 1 or 2"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GarbageCollectorHook(**arguments)

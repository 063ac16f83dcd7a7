"""What the model is shown and judged by, batch by batch, in real runs."""

from __future__ import annotations

from collections import namedtuple
from types import SimpleNamespace

import pytest
import torch
from fakes import TinyData
from hydra import compose
from torch import nn
from torch.utils.data import DataLoader, Dataset

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_hooks
from hookexp.compose.conf_dir import with_hydra
from hookexp.data.loader import WorkerLoader
from hookexp.data.sampler import BatchSampler
from hookexp.data.stream import BatchStream
from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.switch_recipe import SwitchRecipeHook
from hookexp.tasks.supervised import SupervisedTask

Size = namedtuple("Size", "width")


class Shifted(TinyData):
    """Inputs plus a shift, so that a batch tells which value it was made with."""

    def __init__(self, size=24):
        super().__init__(size)
        self.inputs = torch.zeros_like(self.inputs)
        self.shift = 0.0
        self.nested = {"list": [SimpleNamespace(p=1.0)], "pair": (1.0, SimpleNamespace(p=1.0))}
        self.size = Size(8)

    def get_batch(self, indices, generator):
        inputs, targets = super().get_batch(indices, generator)
        return inputs + self.shift, targets


class ShiftedSamples(Dataset):
    def __init__(self):
        self.data = Shifted()
        self.shift = 0.0

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        inputs, targets = self.data[index]
        return inputs + self.shift, targets


class Trace(Hook):
    """The shift of each batch and the loss function it was judged by."""

    def __init__(self):
        self.shifts = []
        self.losses = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.shifts.append(data_batch[0].mean().item())
        self.losses.append(type(runner.task.loss).__name__)


def ahead(batches):
    """Reads two batches ahead, as the copy to a GPU does."""
    waiting = []
    for batch in batches:
        waiting.append(batch)
        if len(waiting) > 2:
            yield waiting.pop(0)
    yield from waiting


def run(make_runner, switches, prefetch=iter, data=None, loader=None, **more):
    trace = Trace()
    hooks = {"switch_recipe": SwitchRecipeHook(switches), "trace": trace, **more.pop("hooks", {})}
    task = SupervisedTask(nn.MSELoss(), {})
    runner = make_runner(hooks, data=data or Shifted(), task=task, **more)
    runner.prefetch = prefetch
    if loader is not None:
        runner._parts.train_loader = runner.train_loop.dataloader = loader
    runner.run("train")
    return runner, trace


def test_at_an_epoch(make_runner):
    switches = [
        {"epoch": 2, "data": {"shift": 3.0}},
        {"epoch": 1, "data": {"shift": 2.0}, "task": {"loss": nn.L1Loss()}},
    ]
    _, trace = run(make_runner, switches, max_epochs=3)
    assert trace.shifts == [0.0] * 3 + [2.0] * 3 + [3.0] * 3
    assert trace.losses == ["MSELoss"] * 3 + ["L1Loss"] * 6


@pytest.mark.parametrize("prefetch", [iter, ahead])
@pytest.mark.parametrize("budget", [{"max_epochs": 2}, {"max_iters": 6}])
def test_at_an_iteration_exactly_whatever_is_read_ahead(make_runner, prefetch, budget):
    switches = [
        {"iter": 2, "data": {"shift": 2.0}},
        {"iter": 4, "data": {"shift": 4.0}, "task": {"loss": nn.L1Loss()}},
    ]
    runner, trace = run(make_runner, switches, prefetch, **budget)
    assert trace.shifts == [0.0] * 2 + [2.0] * 2 + [4.0] * 2
    assert trace.losses == ["MSELoss"] * 4 + ["L1Loss"] * 2
    assert "iterate" not in vars(runner.train_dataloader)


def test_workers_that_live_on_get_the_change(make_runner):
    for unit, numbers in (("epoch", [0.0] * 3 + [2.0] * 3), ("iter", [0.0] + [2.0] * 5)):
        dataset = ShiftedSamples()
        sampler = BatchSampler(24, 8, seed=0, shuffle=True)
        loader = WorkerLoader(dataset, sampler, num_workers=1, persistent_workers=True)
        switches = [{unit: 1, "data": {"shift": 2.0}}]
        _, trace = run(make_runner, switches, loader=loader, max_epochs=2)
        assert trace.shifts == numbers
        loader.close()


def stream_of(num_workers, **options):
    """A DataLoader of the user's own."""
    return BatchStream(DataLoader(ShiftedSamples(), 8, num_workers=num_workers, **options))


@pytest.mark.parametrize("options", [{}, {"persistent_workers": True}])
def test_workers_of_a_loader_of_ones_own_get_the_change_at_an_epoch(make_runner, options):
    switches = [{"epoch": 1, "data": {"shift": 2.0}}]
    _, trace = run(make_runner, switches, loader=stream_of(1, **options), max_epochs=3)
    assert trace.shifts == [0.0] * 3 + [2.0] * 6


def test_workers_of_a_loader_of_ones_own_cannot_get_it_at_an_iteration(make_runner):
    switches = [{"iter": 1, "task": {"loss": nn.L1Loss()}}, {"iter": 2, "data": {"shift": 2.0}}]
    _, trace = run(make_runner, switches, loader=stream_of(0), max_epochs=1)
    assert trace.shifts == [0.0, 0.0, 2.0]
    with pytest.raises(ConfigError, match=r"switches\[1\]\.data: .* workers .*use epoch in place"):
        run(make_runner, switches, loader=stream_of(1), max_epochs=1)
    _, trace = run(make_runner, switches[:1], loader=stream_of(1), max_epochs=1)
    assert trace.losses == ["MSELoss", "L1Loss", "L1Loss"]


@pytest.mark.parametrize("unit", ["epoch", "iter"])
@pytest.mark.parametrize("stop", [1, 2, 4])
def test_a_resumed_run_has_the_recipe_it_would_have_had(make_runner, tmp_path, unit, stop):
    class Stop(Hook):
        priority = 95

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter + 1 == stop and not runner.resumed:
                runner.state.stop("test", urgent=True)

    def part(**more):
        number = 1 if unit == "epoch" else 2
        switches = [{unit: number, "data": {"shift": 2.0}, "task": {"loss": nn.L1Loss()}}]
        hooks = {"checkpoint": CheckpointHook(), **more.pop("hooks", {})}
        return run(make_runner, switches, max_epochs=2, hooks=hooks, **more)

    whole, uncut = part(work_dir=tmp_path / "whole")
    _, first = part(work_dir=tmp_path / "cut", hooks={"stop": Stop()})
    rest, second = part(work_dir=tmp_path / "cut", resume="auto")
    assert len(first.shifts) == stop
    assert first.shifts + second.shifts == uncut.shifts
    assert first.losses + second.losses == uncut.losses
    for one, two in zip(whole.model.parameters(), rest.model.parameters(), strict=True):
        assert torch.equal(one, two)


def test_a_validation_that_a_resume_repeats_has_the_recipe_of_its_epoch(make_runner, tmp_path):
    class Validations(Hook):
        def __init__(self):
            self.losses = []

        def before_val(self, runner):
            self.losses.append(type(runner.task.loss).__name__)

    def part(**more):
        validations = Validations()
        losses = (nn.L1Loss(), nn.SmoothL1Loss())
        switches = [{"epoch": n, "task": {"loss": loss}} for n, loss in enumerate(losses)]
        hooks = {"checkpoint": CheckpointHook(), "validations": validations}
        run(make_runner, switches, hooks=hooks, work_dir=tmp_path / "r", **more)
        return validations.losses

    assert part(max_epochs=1) == ["L1Loss"]
    assert part(max_epochs=2, resume="auto") == ["L1Loss", "SmoothL1Loss"]


def test_paths_go_through_lists_and_dicts(make_runner):
    data = Shifted()
    switches = [
        {"epoch": 0, "data": {"nested.list.0.p": 0.5}},
        {"epoch": 1, "data": {"nested.list.0": SimpleNamespace(q=1)}},
        {"epoch": 1, "data": {"nested.list.0.q": 2, "nested.list": [0]}},
    ]
    run(make_runner, switches[:1], data=data, max_epochs=1)
    assert data.nested["list"][0].p == 0.5
    run(make_runner, switches, data=data, max_epochs=2)
    assert data.nested["list"] == [0]


def test_what_a_tuple_holds_can_be_changed_and_the_tuple_replaced(make_runner):
    data = Shifted()
    inside = [{"epoch": 0, "data": {"nested.pair.1.p": 0.5, "size": Size(9)}}]
    run(make_runner, inside, data=data, max_epochs=1)
    assert (data.nested["pair"][1].p, data.size.width) == (0.5, 9)


def test_a_target_in_the_config_becomes_an_object():
    text = (
        "hooks.switch_recipe.switches=[{epoch: 8, data: {shift: 1}, "
        "task: {loss: {_target_: torch.nn.L1Loss}}}]"
    )
    with with_hydra():
        hooks = build_hooks(compose("config", overrides=["+hooks/switch_recipe=default", text]))
    switch = hooks["switch_recipe"].switches[0]
    assert isinstance(switch.task["loss"], nn.L1Loss)
    assert (switch.number, switch.data) == (8, {"shift": 1})


@pytest.mark.parametrize(
    ("switch", "message"),
    [
        ({"epoch": 9, "data": {"shfit": 1}}, r"switches\[0\]\.data\.shfit: Shifted has no 'shfit'"),
        ({"epoch": 9, "data": {"nested.lst.0": 1}}, r"dict has no 'lst'; it has: list"),
        ({"epoch": 9, "data": {"nested.list.7": 1}}, r"list has no '7'"),
        ({"epoch": 9, "data": {"nested.pair.0": 1}}, r"pair\.0: a tuple takes no new values; set"),
        ({"epoch": 9, "data": {"size.width": 1}}, r"size\.width: a Size takes no new values; set"),
        ({"epoch": 9, "task": {"los": 1}}, r"SupervisedTask has no 'los'; it has: loss, metrics"),
    ],
)
def test_a_wrong_path_is_told_before_the_first_batch(make_runner, switch, message):
    data = Shifted()
    with pytest.raises(ConfigError, match=message):
        run(make_runner, [switch], data=data, max_epochs=1)
    assert data.num_read == 0


def test_epochs_in_a_run_by_iterations(make_runner):
    with pytest.raises(ConfigError, match="use iter in place of epoch"):
        run(make_runner, [{"epoch": 1, "task": {"loss": nn.L1Loss()}}], max_iters=2)


def test_without_switches_it_says_so(make_runner, caplog):
    run(make_runner, [], max_epochs=1)
    assert "nothing will change" in caplog.text


@pytest.mark.parametrize(
    ("switches", "message"),
    [
        ([{"epoch": 1}], r"switches\[0\]: use a dict with data or task"),
        ([{"epoch": 1, "data": {}, "x": 1}], r"switches\[0\]\.x: use one of"),
        ([{"data": {"a": 1}}], "give epoch in all switches, or iter in all"),
        ([{"epoch": 1, "data": {}}, {"iter": 1, "data": {}}], "give epoch in all"),
        ([{"iter": -1, "data": {}}], r"switches\[0\]\.iter=-1: use a whole number"),
    ],
)
def test_what_is_refused(switches, message):
    with pytest.raises(ValueError, match=message):
        SwitchRecipeHook(switches)

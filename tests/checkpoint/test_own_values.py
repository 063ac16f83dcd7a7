"""What the model and the task keep in plain attributes comes back after a resume."""

from __future__ import annotations

import io
import multiprocessing
import random
import threading
from collections import Counter, defaultdict, deque, namedtuple
from dataclasses import dataclass, field
from enum import Enum
from functools import partial
from itertools import count, cycle
from pathlib import Path
from typing import Generic, NamedTuple, TypeVar

import numpy as np
import pytest
import torch
from fakes import StopAt, TinyModel, TinyTask
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from torchmetrics import MeanMetric

from hookexp.checkpoint.beside import Beside
from hookexp.checkpoint.plain_form import can_be_held, from_plain, to_plain
from hookexp.checkpoint.reading import load_checkpoint
from hookexp.checkpoint.trace import trace
from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook

T = TypeVar("T")


def assert_same_end(folder, name):
    """Of the run that was not stopped and the one that was, weights and what is kept beside."""
    whole, resumed = (load_checkpoint(folder / run / name) for run in ("whole", "cut"))
    for key, weight in whole["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][key]), key
    assert repr(whole["beside"]) == repr(resumed["beside"])


class Recurrent(TinyModel):
    """Carries its hidden state from batch to batch, and counts them."""

    def __init__(self):
        super().__init__()
        self.cell = nn.LSTMCell(4, 4)
        self.hidden = None
        self.inner.num_batches = 0

    def forward(self, inputs):
        hidden = self.cell(inputs, self.hidden if self.training else None)
        if self.training:
            self.hidden = tuple(part.detach() for part in hidden)
            self.inner.num_batches += 1
            self.inner.last_hidden = hidden[0]
        return super().forward(hidden[0]) / (1 + self.inner.num_batches)


class BaselineTask(TinyTask):
    """A running mean, a bank that is written in place, a history and a metric of training."""

    def __init__(self):
        super().__init__()
        self.mean = torch.zeros(())
        self.bank = torch.zeros(4)
        self.history = []
        self.metric = MeanMetric()

    def train_step(self, model, batch):
        loss = super().train_step(model, batch)["loss"]
        self.mean = 0.9 * self.mean + 0.1 * loss.detach()
        self.bank.data[len(self.history) % 4] = loss.detach()
        self.history.append({"loss": loss.item()})
        self.metric.update(loss.detach())
        share = self.mean + self.bank.sum() + self.history[0]["loss"] + self.metric.compute()
        return {"loss": loss * share}


class LearnsItsState(TinyModel):
    """Carries a state that requires grad, cut off from the step before."""

    def __init__(self):
        super().__init__()
        self.cell = nn.GRUCell(4, 4)
        self.hidden = torch.zeros(1, 4, requires_grad=True)
        self.start = self.hidden

    def forward(self, inputs):
        hidden = self.cell(inputs, self.hidden.expand(len(inputs), 4))
        if self.training:
            self.hidden = hidden.mean(0, keepdim=True).detach().requires_grad_()
        return super().forward(hidden + self.start)


class HidesATeacher(TinyModel):
    """Keeps it in a plain list, so that it is none of the model's parameters; makes noise there."""

    def __init__(self):
        super().__init__()
        self.inner.teachers = [nn.Linear(4, 4).requires_grad_(False)]
        self.inner.teachers[0].noise = torch.Generator().manual_seed(0)
        self.inner.teachers[0].calls = 0

    def forward(self, inputs):
        teacher = self.inner.teachers[0]
        if self.training:
            teacher.calls += 1
            teacher.weight.lerp_(torch.randn(4, 4, generator=teacher.noise), 0.1)
        return super().forward(inputs + teacher(inputs)) * (1 + teacher.calls % 3)


class Meter:
    def __init__(self):
        self.total, self.seen, self.last = 0.0, [], None

    def update(self, loss):
        self.total += loss.item()
        self.seen.append(self.total)
        self.last = loss.detach()


class Seen(NamedTuple):
    inputs: torch.Tensor
    loss: float


class Replays(TinyTask):
    """What it has seen, in an object and of a class that is not there yet when a run goes on."""

    def __init__(self):
        super().__init__()
        self.memory, self.newest = Meter(), None
        self.memory.seen = deque(maxlen=5)

    def train_step(self, model, batch):
        self.newest = Seen(batch[0].mean(), 1.0 + len(self.memory.seen))
        self.memory.seen.append(self.newest)
        share = sum(one.inputs.square() * one.loss for one in self.memory.seen)
        return {"loss": super().train_step(model, batch)["loss"] * share}


class Policy:
    """A weight that only its own optimizer knows."""

    def __init__(self):
        self.weight = torch.ones(3, requires_grad=True)


class KeepsObjects(TinyTask):
    """Meters, one of them under two names, a list that a closure has, weights in an object."""

    def __init__(self):
        super().__init__()
        self.meters = {"loss": Meter(), "last": Meter()}
        self.loss_meter, self.newest = self.meters["loss"], Meter()
        self.policy = Policy()
        self.optimizer = torch.optim.Adam([self.policy.weight], lr=0.01)
        self.history = history = []
        self.note = history.append
        self.length = history.__len__

    def train_step(self, model, batch):
        loss = super().train_step(model, batch)["loss"]
        self.optimizer.zero_grad()
        (loss.detach() * self.policy.weight.square().sum()).backward()
        self.optimizer.step()
        self.loss_meter.update(loss)
        self.newest = Meter()
        self.newest.update(loss)
        self.meters["last"].update(self.newest.last)
        self.note(loss.item())
        share = sum(meter.total for meter in self.meters.values()) + self.length()
        return {"loss": loss * (share % 2 + self.policy.weight.detach().sum())}


class Slowing(torch.optim.SGD):
    """Counts its steps in itself, and keeps a tensor there."""

    def __init__(self, params, **options):
        super().__init__(params, **options)
        self.num_steps, self.speed = 0, torch.ones(())

    def step(self, closure=None):
        self.num_steps += 1
        self.speed = self.speed * 0.9
        for group in self.param_groups:
            group["lr"] = 0.01 * self.speed.item() / self.num_steps
        super().step(closure)


class Lookahead(torch.optim.Optimizer):
    """Wraps another, which has the same groups; keeps slow weights of its own."""

    inner = torch.optim.SGD

    def __init__(self, params, **options):
        self.fast = self.inner(params, **options)
        super().__init__(self.fast.param_groups, {})
        self.param_groups = self.fast.param_groups
        self.num_steps = 0
        self.slow = [[p.detach().clone() for p in g["params"]] for g in self.param_groups]

    @torch.no_grad()
    def step(self, closure=None):
        self.fast.step()
        self.num_steps += 1
        for group, slow in zip(self.param_groups, self.slow, strict=True):
            group["lr"] *= 0.99
            for weight, average in zip(group["params"], slow, strict=True):
                average.lerp_(weight, 0.5)
                if self.num_steps % 3 == 0:
                    weight.copy_(average)


@pytest.mark.parametrize("stops", [[1], [4], [2, 5], [11, 12]])
@pytest.mark.parametrize(
    ("make_task", "make_model", "optimizer"),
    [
        (BaselineTask, TinyModel, torch.optim.SGD),
        (Replays, TinyModel, torch.optim.SGD),
        (TinyTask, Recurrent, torch.optim.SGD),
        (TinyTask, TinyModel, Slowing),
        (TinyTask, TinyModel, Lookahead),
        (TinyTask, LearnsItsState, torch.optim.SGD),
        (TinyTask, HidesATeacher, torch.optim.SGD),
        (KeepsObjects, TinyModel, torch.optim.SGD),
    ],
)
def test_a_resumed_run_is_the_run_that_was_not_stopped(
    make_runner, tmp_path, monkeypatch, make_task, make_model, optimizer, stops
):
    monkeypatch.setattr(torch.optim, "SGD", optimizer)

    def run(folder, hooks, **more):
        torch.manual_seed(0)
        hooks = {"checkpoint": CheckpointHook(), **hooks}
        parts = {"model": make_model(), "task": make_task(), "lr": 0.01}
        make_runner(hooks, work_dir=folder, max_epochs=5, **parts, **more).run("train")

    run(tmp_path / "whole", {})
    for stop in stops:
        run(tmp_path / "cut", {"stop": StopAt(stop)}, resume="auto")
    run(tmp_path / "cut", {}, resume="auto")
    assert_same_end(tmp_path, "epoch_5.pth")


class Odd(TinyModel):
    """Its step makes once what no checkpoint can hold, or graphs and lists of weights anew."""

    def __init__(self):
        super().__init__()
        self.cache, self.length = None, 0

    def forward(self, inputs):
        if self.cache is None:
            self.cache, self.length = object(), len(inputs)
        self.learned = [*self.parameters()]
        self.of_inputs = torch.device(inputs.device.type), Path("inputs")
        self.last_output = super().forward(inputs)
        self.pieces = {"first": (self.last_output[0], 1), "weights": self.learned * 2}
        return self.last_output


class PredictingTask(TinyTask):
    def __init__(self):
        super().__init__()
        self.runner = None

    def setup(self, runner):
        self.runner = runner


def values_after(make_runner, task, model, **more):
    runner = make_runner({}, task=task, model=model, max_epochs=1, **more)
    runner.run("train")
    return runner.checkpointer.beside.state_dict()["values"][0]


def test_what_is_no_state_is_not_held_and_not_told(make_runner, caplog):
    """What is made once, what holds weights, the runner; the default parts have nothing."""
    hooks = {"checkpoint": CheckpointHook(by_epoch=False)}
    runner = make_runner(hooks, task=PredictingTask(), model=Odd(), max_epochs=1)
    with caplog.at_level("WARNING"):
        runner.run("train")
        held = runner.checkpointer.beside.state_dict()["values"][0]
    assert {path: [*values] for path, values in held.items()} == {
        "model": ["last_output", "length"]
    }
    assert not held["model"]["last_output"][0].requires_grad
    assert "no checkpoint" not in caplog.text


def test_a_large_output_is_told_and_not_held(make_runner, caplog):
    class Model(TinyModel):
        def forward(self, inputs):
            outputs = super().forward(inputs)
            self.attention = [outputs.sum() + torch.zeros(1100, 1000)]
            return outputs

    hooks = {"checkpoint": CheckpointHook(by_epoch=False)}
    runner = make_runner(hooks, model=Model(), max_epochs=2)
    with caplog.at_level("WARNING"):
        runner.run("train")
        assert runner.checkpointer.beside.state_dict()["values"] == [{}]
    told = [message for message in caplog.messages if "is in no checkpoint" in message]
    assert len(told) == 1 and told[0].startswith("model.attention is taken for an output")


class Notes:
    def __init__(self):
        self.lines = ["a line"] * 5000


class Vocabulary:
    def __init__(self):
        self.words = {f"word {number}": number for number in range(5000)}


def test_a_long_list_is_told_by_its_length(make_runner):
    class Task(TinyTask):
        def __init__(self):
            super().__init__()
            self.words, self.seen, self.notes = ["a word"] * 5000, [0] * 5000, Notes()
            self.vocabulary = Vocabulary()

        def train_step(self, model, batch):
            self.seen.append(len(self.seen))
            self.notes.lines.append("a line")
            return super().train_step(model, batch)

    task = Task()
    held = values_after(make_runner, task, TinyModel())
    assert [*held["task"]] == ["notes", "seen"]
    assert held["task"]["seen"] == [task.seen, False, True]
    assert held["task"]["notes"][0]["items"] == {"lines": task.notes.lines}


class Opaque:
    """An object that says nothing of its state, and has more in it than values."""

    def __init__(self):
        self.lock = threading.Lock()


class Unready(Opaque):
    """One whose state cannot be asked for without more."""

    def state_dict(self, which):
        return {}

    def load_state_dict(self, state):
        raise AssertionError("it has none")


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize("make", [lambda: [Opaque()], lambda: np.array([Opaque()]), Unready])
def test_what_cannot_be_held_is_told_once(make_runner, caplog, make, is_late):
    class Task(TinyTask):
        def __init__(self):
            super().__init__()
            self.kept, self.steps = None if is_late else make(), 0

        def train_step(self, model, batch):
            self.steps += 1
            self.kept = make()
            return super().train_step(model, batch)

    runner = make_runner({"checkpoint": CheckpointHook()}, task=Task(), max_epochs=3)
    with caplog.at_level("WARNING"):
        runner.run("train")
        assert runner.checkpointer.beside.state_dict()["values"] == [{}]
    told = [message for message in caplog.messages if "is in no checkpoint" in message]
    assert len(told) == 1 and told[0].startswith("task.kept (")


class World:
    """What an agent learns in: a state, and generators of every kind, one in a list."""

    def __init__(self):
        self.state, self.random = 0.0, random.Random(1)
        self.array, self.legacy = np.random.default_rng(2), np.random.RandomState(3)
        self.noise = [torch.Generator().manual_seed(4)]

    def step(self):
        drawn = self.random.random() + self.array.random() + self.legacy.rand()
        self.state = 0.9 * self.state + drawn + torch.rand((), generator=self.noise[0]).item()
        return self.state


class Agent(TinyTask):
    def __init__(self):
        super().__init__()
        self.world = World()

    def train_step(self, model, batch):
        return {"loss": super().train_step(model, batch)["loss"] * self.world.step()}


@pytest.mark.parametrize("stop_at", [1, 4])
def test_an_object_with_generators_goes_on(make_runner, tmp_path, stop_at):
    def run(folder, *hooks, **more):
        parts = {"checkpoint": CheckpointHook(by_epoch=False)}
        parts |= {str(number): hook for number, hook in enumerate(hooks)}
        runner = make_runner(parts, work_dir=folder, task=Agent(), max_epochs=2, **more)
        runner.run("train")
        return runner.task.world

    whole = run(tmp_path / "whole")
    run(tmp_path / "cut", StopAt(stop_at))
    resumed = run(tmp_path / "cut", resume="auto")
    assert resumed.step() == whole.step()
    assert_same_end(tmp_path, "iter_6.pth")


Point = namedtuple("Point", "count mean")


def test_named_tuples_and_shared_numbers_go_on():
    context = multiprocessing.get_context("fork")
    value, shared = (
        [Point(1, torch.ones(2)), {"a": Point(2, Point(3, 4.0))}],
        context.Value("d", 0.5),
    )
    held, ours = [Point(0, torch.zeros(2)), {"a": Point(0, Point(0, 0.0))}], context.Value("d", 0.0)
    assert repr(from_plain(to_plain(value), held)) == repr(value)
    assert from_plain(to_plain(shared), ours) is ours
    assert ours.value == 0.5
    before = trace([shared])
    assert before.is_of_the_same_as(trace([shared]))
    shared.value = 0.75
    assert not before.is_of_the_same_as(trace([shared]))


def numbers():
    yield from count()


@pytest.mark.parametrize("is_late", [False, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda: cycle(range(3)),
        numbers,
        lambda: iter(DataLoader(range(100))),
        lambda: {"first": count(), "second": numbers()},
    ],
)
def test_an_iterator_is_told_once_and_the_rest_is_held(make_runner, caplog, make, is_late):
    class Task(TinyTask):
        def __init__(self):
            super().__init__()
            self.batches, self.steps = None if is_late else make(), 0

        def train_step(self, model, batch):
            self.steps += 1
            self.batches = make() if self.batches is None else self.batches
            return super().train_step(model, batch)

    runner = make_runner({"checkpoint": CheckpointHook()}, task=Task(), max_epochs=3)
    with caplog.at_level("WARNING"):
        runner.run("train")
        (values,) = runner.checkpointer.beside.state_dict()["values"]
    assert [*values["task"]] == ["steps"]
    told = [message for message in caplog.messages if "is in no checkpoint" in message]
    assert len(told) == 1 and told[0].startswith("task.batches (")
    assert "hookexp.EndlessBatches" in told[0]


def test_what_is_iterated_and_knows_where_it_stands_is_no_such_iterator(make_runner, caplog):
    class Turns:
        def __init__(self):
            self.turn = 0

        def __iter__(self):
            return self

        def __next__(self):
            self.turn += 1
            return self.turn

    class Task(TinyTask):
        def __init__(self):
            super().__init__()
            self.turns, self.file = Turns(), io.StringIO()

        def train_step(self, model, batch):
            next(self.turns)
            self.file.write("a line")
            return super().train_step(model, batch)

    runner = make_runner({"checkpoint": CheckpointHook()}, task=Task(), max_epochs=3)
    with caplog.at_level("WARNING"):
        runner.run("train")
        (values,) = runner.checkpointer.beside.state_dict()["values"]
    assert values["task"]["turns"][0]["items"] == {"turn": 9}
    assert "is in no checkpoint" not in caplog.text


def test_a_set_is_saved_the_same_whatever_the_order_it_was_filled_in():
    one, two = {"b", "a", (1, 2)}, {(1, 2), "a"} | {"b"}
    assert to_plain(one) == to_plain(two) == to_plain({*reversed([*one])})
    assert from_plain(to_plain(one), None) == one
    assert to_plain({8, 0})["items"] == to_plain({0, 8})["items"] == [0, 8]


class KeepsMuch(TinyTask):
    """Of many kinds; an array by columns, one that others have too, what is made late."""

    def __init__(self):
        super().__init__()
        self.sums, self.columns = np.zeros(3), np.zeros((2, 3), order="F")
        self.view = self.sums[:1]
        self.mean, self.recent = np.float32(1), deque(maxlen=3)
        self.seen, self.words = set(), Counter()
        self.by_step, self.late, self.phase = defaultdict(list), None, 1 + 0j
        self.steps = 0

    def train_step(self, model, batch):
        outputs = super().train_step(model, batch)
        self.steps += 1
        loss = outputs["loss"].item()
        self.sums[self.steps % 3] += loss
        self.columns[:, self.steps % 3] += loss
        self.mean = np.float32(0.9) * self.mean + np.float32(loss)
        self.phase *= 1j
        self.recent.append(loss)
        self.seen.add(int(10 * loss))
        self.words[f"{loss:.1f}"] += 1
        self.by_step[self.steps % 2].append(np.array([loss]))
        self.late = deque([*(self.late or ()), {"loss": np.float64(loss)}], maxlen=2)
        share = float(self.view[0] + self.mean) + sum(self.recent) + len(self.seen)
        share += len(self.by_step[0]) + self.phase.real + float(self.late[0]["loss"])
        return {"loss": outputs["loss"] * (1 + (share + max(self.words.values())) % 1)}


class Replay:
    def __init__(self):
        self.items = []

    def state_dict(self):
        return {"items": np.array(self.items)}

    def load_state_dict(self, state):
        self.items = [*state["items"]]


class KeepsWhatHasAState(TinyTask):
    """An optimizer with a schedule for a temperature, two in a list, an object of its own."""

    def setup(self, runner):
        self.temperatures = [torch.ones(1, requires_grad=True) for _ in range(3)]
        adams = [torch.optim.Adam([t], lr=0.1) for t in self.temperatures]
        self.optimizer, *self.others = adams
        self.schedule = torch.optim.lr_scheduler.StepLR(self.optimizer, 2, 0.5)
        self.replay = Replay()

    def train_step(self, model, batch):
        loss = super().train_step(model, batch)["loss"]
        for optimizer, temperature in zip(
            (self.optimizer, *self.others), self.temperatures, strict=True
        ):
            optimizer.zero_grad()
            (temperature * (loss.detach() - 1)).sum().backward()
            optimizer.step()
        self.schedule.step()
        self.replay.items.append(loss.item())
        share = sum(t.detach() for t in self.temperatures) + self.replay.items[-3:][0]
        return {"loss": (loss * (1 + share % 1)).sum()}


class ChangesSeldom(TinyTask):
    """In its twelfth step, in a validation, and by a hook."""

    def __init__(self):
        super().__init__()
        self.scale, self.best, self.by_hook, self.bank = 1.0, None, 1.0, torch.zeros(3)
        self.runner = None

    def setup(self, runner):
        self.runner = runner

    def train_step(self, model, batch):
        loss = super().train_step(model, batch)["loss"]
        if self.runner.iter == 11:
            self.scale = 0.5
            self.bank.data += loss.detach()
        return {"loss": loss * (self.scale * self.by_hook + (self.best or 0) + self.bank.sum())}

    def compute_metrics(self):
        metrics = super().compute_metrics()
        if self.runner.epoch == 3:
            self.best = float(metrics["loss"])
        return metrics


class SetsOnce(Hook):
    def before_train_epoch(self, runner):
        if runner.epoch == 2 and not runner.state.batch_in_epoch:
            runner.task.by_hook = 0.7


class Slotted(Generic[T]):
    """A private one, one that is not set at first, none with room for others."""

    __slots__ = ("__total", "last", "parts")

    def __init__(self):
        self.__total, self.parts = 0.0, []

    def add(self, value):
        self.__total += value
        self.last = value
        self.parts = [*self.parts, value][-3:]
        return self.__total + len(self.parts)


class Mixed(Slotted):
    """Slots, and a dict beside them."""


@dataclass(slots=True)
class Counts:
    steps: int = 0
    sums: np.ndarray = field(default_factory=lambda: np.zeros(2))


@dataclass(slots=True, frozen=True)
class Frozen:
    mean: float = 0.0


@dataclass(slots=True)
class Nested:
    mixed: Mixed = field(default_factory=Mixed)
    best: float | None = None


class KeepsSlots(TinyTask):
    """Objects with slots, nested, in a list, and frozen ones that are made anew."""

    def __init__(self):
        super().__init__()
        self.slotted, self.counts, self.frozen = Slotted(), [Counts(), Counts()], Frozen()
        self.nested = Nested()
        self.nested.mixed.extra = [0]

    def train_step(self, model, batch):
        outputs = super().train_step(model, batch)
        loss = outputs["loss"].item()
        share = self.slotted.add(loss) + self.nested.mixed.add(loss)
        self.counts[1].steps += 1
        self.counts[0].sums[self.counts[1].steps % 2] += loss
        self.frozen = Frozen(0.9 * self.frozen.mean + loss)
        self.nested.best = min(loss, self.nested.best or loss)
        self.nested.mixed.extra.append(loss)
        share += float(self.counts[0].sums[1]) + self.frozen.mean + self.nested.best
        return {"loss": outputs["loss"] * (1 + (share + self.nested.mixed.extra[-2]) % 1)}


class DetachesWhereItIsUsed(TinyModel):
    """Keeps its hidden state with the graph, and an output that it makes anew."""

    def __init__(self):
        super().__init__()
        self.cell, self.hidden = nn.GRUCell(4, 4), None

    def forward(self, inputs):
        hidden = None if self.hidden is None else self.hidden[0].detach()
        hidden = self.cell(inputs, hidden if self.training else None)
        if self.training:
            self.hidden = (hidden,)
        self.last_output = super().forward(hidden)
        return self.last_output


def test_a_tuple_with_names_is_one_again_if_its_class_is_there():
    saved = to_plain(Seen(torch.ones(1), 2.0))
    assert type(from_plain(saved, None)) is Seen
    for of in (["not_there", "Seen"], [__name__, "Replays"], [__name__, "T"]):
        with pytest.raises(LookupError, match=f"a {of[-1]} with 2 fields has to be there"):
            from_plain({**saved, "of": of}, None)
    with pytest.raises(LookupError, match="with 1 fields"):
        from_plain({**saved, "items": [1]}, None)

    class Local(NamedTuple):
        one: int

    assert not can_be_held(Local(1))


@pytest.mark.parametrize("stops", [[1], [4], [2, 5], [12, 13], [16]])
@pytest.mark.parametrize(
    ("make_task", "make_model"),
    [
        (KeepsMuch, TinyModel),
        (KeepsWhatHasAState, TinyModel),
        (ChangesSeldom, TinyModel),
        (KeepsSlots, TinyModel),
        (TinyTask, DetachesWhereItIsUsed),
    ],
)
def test_a_resumed_run_keeps_what_is_not_plain_or_changes_seldom(
    make_runner, tmp_path, caplog, make_task, make_model, stops
):
    def run(folder, hooks, **more):
        torch.manual_seed(0)
        hooks = {"checkpoint": CheckpointHook(), "sets": SetsOnce(), **hooks}
        parts = {"model": make_model(), "task": make_task(), "lr": 0.01}
        make_runner(hooks, work_dir=folder, max_epochs=6, **parts, **more).run("train")

    with caplog.at_level("WARNING"):
        run(tmp_path / "whole", {})
        for stop in stops:
            run(tmp_path / "cut", {"stop": StopAt(stop)}, resume="auto")
        run(tmp_path / "cut", {}, resume="auto")
    assert_same_end(tmp_path, "epoch_6.pth")
    assert not [message for message in caplog.messages if "checkpoint" in message]


class CountsEvaluated(TinyTask):
    """Its steps go by how many batches evaluations have seen, and by what a hook has scaled."""

    def __init__(self):
        super().__init__()
        self.num_seen, self.num_last, self.scale, self.bank = 0, 0, 1.0, torch.zeros(1)

    def train_step(self, model, batch):
        loss = super().train_step(model, batch)["loss"]
        share = self.num_seen + 2 * self.num_last + self.bank.sum()
        return {"loss": loss * self.scale / (1 + share)}

    def reset_metrics(self):
        super().reset_metrics()
        self.num_last = 0

    def val_step(self, model, batch):
        self.num_seen += 1
        self.num_last += 1
        self.bank += 1
        return super().val_step(model, batch)


class Scales(Hook):
    def __init__(self, factor=0.5):
        self.factor = factor

    def before_train(self, runner):
        runner.task.scale *= self.factor


class GivesUpAnEvaluation(Hook):
    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.epoch == 2 and batch_idx == 1:
            runner.state.stop("a signal", urgent=True)


def test_an_evaluation_that_is_given_up_and_hooks_that_set_values_count_once(make_runner, tmp_path):
    def run(folder, hooks, **more):
        torch.manual_seed(0)
        hooks = {"checkpoint": CheckpointHook(interval=4), "scales": Scales(), **hooks}
        make_runner(
            hooks, work_dir=folder, max_epochs=4, val_size=24, task=CountsEvaluated(), **more
        ).run("train")

    run(tmp_path / "whole", {})
    run(tmp_path / "cut", {"gives_up": GivesUpAnEvaluation()}, resume="auto")
    assert (tmp_path / "cut" / "epoch_2.pth").exists()
    run(tmp_path / "cut", {"stop": StopAt(8)}, resume="auto")
    run(tmp_path / "cut", {}, resume="auto")
    assert_same_end(tmp_path, "epoch_4.pth")


class Collects(TinyTask):
    """Keeps what an evaluation has seen, and begins the next one without it."""

    def __init__(self):
        super().__init__()
        self.predictions, self.summary = [], None

    def reset_metrics(self):
        super().reset_metrics()
        self.predictions.clear()
        self.summary = None

    def val_step(self, model, batch):
        outputs = super().val_step(model, batch)
        self.predictions.append(outputs)
        self.summary = torch.ones(1)
        return outputs


@pytest.mark.parametrize("stops", [[4], [7], [8, 10], [14]])
def test_what_an_evaluation_leaves_is_in_the_same_checkpoints_after_a_resume(
    make_runner, tmp_path, stops
):
    def run(folder, hooks, **more):
        hooks = {"checkpoint": CheckpointHook(), **hooks}
        make_runner(hooks, work_dir=folder, max_epochs=6, task=Collects(), **more).run("train")

    run(tmp_path / "whole", {})
    for stop in stops:
        run(tmp_path / "cut", {"stop": StopAt(stop)}, resume="auto")
    run(tmp_path / "cut", {}, resume="auto")
    for epoch in range(1, 7):
        assert_same_end(tmp_path, f"epoch_{epoch}.pth")


def test_what_a_hook_sets_at_the_start_is_configuration(make_runner, tmp_path):
    def run(epochs, factor, **more):
        task = CountsEvaluated()
        hooks = {"checkpoint": CheckpointHook(), "scales": Scales(factor)}
        make_runner(hooks, task=task, work_dir=tmp_path, max_epochs=epochs, **more).run("train")
        return task.scale

    assert run(1, 0.5) == 0.5
    assert run(2, 0.3, resume="auto") == 0.3


def test_what_an_evaluation_collects_is_not_held_once_it_was_reset(make_runner):
    class Task(TinyTask):
        def __init__(self):
            super().__init__()
            self.predictions, self.best = [], 0.0

        def val_step(self, model, batch):
            outputs = super().val_step(model, batch)
            self.predictions.append(outputs)
            self.best += 1
            return outputs

        def reset_metrics(self):
            super().reset_metrics()
            self.predictions.clear()

    runner = make_runner({}, task=Task(), max_epochs=2)
    runner.run("train")
    assert runner.checkpointer.beside.state_dict()["values"] == [
        {"task": {"best": [2.0, False, False]}}
    ]


@pytest.mark.parametrize("kind", [dict, list])
def test_optimizers_of_the_run_hide_nothing_where_they_are_in_a_dict_or_list(
    make_runner, caplog, kind
):
    class Task(TinyTask):
        trains = True

        def setup(self, runner):
            optimizers = runner.optim_wrapper.optimizers
            self.optimizers = optimizers if kind is dict else [*optimizers.values()]
            self.runner, self.steps = runner, 0

        def train_step(self, model, batch):
            self.steps += 1
            loss = super().train_step(model, batch)["loss"]
            loss.backward()
            self.runner.optimizer_step()
            return {"loss": loss.detach()}

    runner = make_runner({}, task=Task(), max_epochs=1, with_optimizer=False)
    runner.optimizer.param_groups[0]["momentum"] = 0.9
    with caplog.at_level("WARNING"):
        runner.run("train")
        assert runner.checkpointer.beside.state_dict()["values"] == [
            {"task": {"steps": [3, False, False]}}
        ]
    assert "no checkpoint" not in caplog.text


def test_it_can_be_left_out(make_runner, tmp_path, caplog):
    class Counting(TinyTask):
        steps = 0

        def train_step(self, model, batch):
            self.steps += 1
            return super().train_step(model, batch)

    def run(epochs, **more):
        task = Counting()
        hooks = {"checkpoint": CheckpointHook()}
        make_runner(hooks, task=task, work_dir=tmp_path, max_epochs=epochs, **more).run("train")
        return task.steps

    assert run(1) == 3
    assert run(2, resume="auto") == 6
    assert run(3, resume="auto", resume_ignore=("beside",)) == 3
    assert "resume: beside: what it holds is left out (resume_ignore)" in caplog.messages


def sharing(make):
    """A task and a module of a model that have one and the same, and what is saved of them."""
    task, model = TinyTask(), TinyModel()
    task.bank = model.inner.bank = make()
    beside = Beside(model, task)
    beside.values.begin()
    return task, model, beside


def test_a_tensor_that_others_have_too_stays_theirs():
    task, model, beside = sharing(partial(torch.zeros, 3))
    task.bank[0] += 1
    saved = beside.state_dict()
    assert list(saved["values"][0]["task"]) == ["bank"]
    task, model, beside = sharing(partial(torch.zeros, 3))
    beside.load_values(saved)
    assert task.bank[0] == 1 and task.bank is model.inner.bank


@pytest.mark.parametrize(
    "make",
    [
        lambda: torch.randn(3, dtype=torch.complex64).conj(),
        lambda: torch.randn(3, dtype=torch.complex64).conj().imag,
        lambda: torch.zeros(3, device="meta"),
    ],
)
def test_a_tensor_that_is_no_plain_memory_stops_no_run(make_runner, make):
    """One that is read through a conjugation, or has no memory at all."""

    class Task(TinyTask):
        def setup(self, runner):
            self.kept = make()

    assert values_after(make_runner, Task(), TinyModel()) == {}


def test_a_tensor_that_is_read_through_a_conjugation_is_looked_at(make_runner):
    class Task(TinyTask):
        def setup(self, runner):
            self.kept = torch.ones(3, dtype=torch.complex64).mul(1j).conj()

        def train_step(self, model, batch):
            self.kept += 1
            return super().train_step(model, batch)

    task = Task()
    held = values_after(make_runner, task, TinyModel())
    assert held["task"]["kept"][0].data_ptr() == task.kept.data_ptr()


class Linked:
    """A node of a list in which each has the next one."""

    def __init__(self, following=None):
        self.following = following


@pytest.mark.parametrize("kind", [lambda v: [v], lambda v: {"a": v}, Linked])
@pytest.mark.parametrize("where", ["task", "model"])
def test_what_is_nested_deep_stops_no_run(make_runner, caplog, where, kind):
    def nested(levels):
        value = torch.zeros(1)
        for _ in range(levels):
            value = kind(value)
        return value

    class Task(TinyTask):
        def train_step(self, model, batch):
            owner = {"task": self, "model": model}[where]
            owner.chain, owner.short = nested(1000), nested(20)
            return super().train_step(model, batch)

    task, model = Task(), TinyModel()
    for owner in (task, model):
        owner.chain, owner.short = nested(999), nested(19)
    with caplog.at_level("WARNING"):
        assert values_after(make_runner, task, model) == {}
    told = [message for message in caplog.messages if "is in no checkpoint" in message]
    assert len(told) == 1 and told[0].startswith(f"{where}.chain (")


@pytest.mark.parametrize("where", ["task", "model"])
def test_what_leads_back_to_itself_stops_no_run(make_runner, caplog, where):
    """A tree whose leaves know their parents, of which a step changes something."""
    tree = {"name": "root", "children": [], "visits": 0}
    tree["children"].append({"name": "leaf", "parent": tree, "weights": [torch.zeros(1)]})

    class Task(TinyTask):
        def train_step(self, model, batch):
            tree["visits"] += 1
            return super().train_step(model, batch)

    task, model = Task(), TinyModel()
    {"task": task, "model": model}[where].tree = tree
    with caplog.at_level("WARNING"):
        assert values_after(make_runner, task, model) == {}
    told = [message for message in caplog.messages if "is in no checkpoint" in message]
    assert len(told) == 1 and told[0].startswith(f"{where}.tree (dict)")


def test_a_number_of_any_length_stops_no_run(make_runner):
    """Python writes none of more than 4300 digits."""

    class Task(TinyTask):
        def __init__(self):
            super().__init__()
            self.visited = 1 << 20000

        def train_step(self, model, batch):
            self.visited |= self.visited >> 1
            return super().train_step(model, batch)

    task = Task()
    held = values_after(make_runner, task, TinyModel())
    assert held == {"task": {"visited": [task.visited, False, False]}}


def test_shapes_and_dtypes_are_held(make_runner, tmp_path, caplog):
    class Task(TinyTask):
        def __init__(self):
            super().__init__()
            self.seen, self.shape, self.dtypes = 0, None, ()

        def train_step(self, model, batch):
            self.seen += len(batch[0])
            self.shape, self.dtypes = torch.Size([self.seen, 1]), (torch.float32,) * self.seen
            return super().train_step(model, batch)

    def run(epochs, **more):
        task = Task()
        hooks = {"checkpoint": CheckpointHook()}
        make_runner(hooks, task=task, work_dir=tmp_path, max_epochs=epochs, **more).run("train")
        return task

    run(1)
    task = run(1, resume="auto")
    assert (task.seen, task.shape, task.dtypes) == (24, torch.Size([24, 1]), (torch.float32,) * 24)
    assert "no checkpoint" not in caplog.text


def test_fewer_ranks_go_on_with_what_the_first_one_had(caplog):
    class Counting(TinyTask):
        steps = 0

    task = Counting()
    values = [{"task": {"steps": [n, False]}} for n in (7, 9)]
    Beside(TinyModel(), task).load_values({"tensors": {}, "values": values, "task": None})
    assert task.steps == 7
    assert caplog.messages == [
        "resume: what task and model keep beside the weights is of 2 processes and this run has 1, "
        "so it is that of rank 0"
    ]


def test_other_ranks_are_not_told_where_there_is_nothing(caplog):
    Beside(TinyModel(), TinyTask()).load_values({"tensors": {}, "values": [{}, {}], "task": None})
    assert caplog.messages == []


class WithProperty(TinyModel):
    kept = property(lambda self: 1.0)


class WithParameter(TinyModel):
    def __init__(self):
        super().__init__()
        self.kept = nn.Parameter(torch.zeros(()))


@pytest.mark.parametrize("make_model", [WithProperty, WithParameter])
def test_what_takes_no_value_any_more_begins_anew(caplog, make_model):
    values = [{"model": {"kept": [3, False]}}]
    Beside(make_model(), TinyTask()).load_values({"tensors": {}, "values": values, "task": None})
    assert caplog.messages == ["model.kept is not what it was in the checkpoint, and begins anew"]


class Unending(IterableDataset):
    def __iter__(self):
        return iter([])


@pytest.mark.parametrize("make", [lambda: np.array(0.5), lambda: DataLoader(Unending())])
def test_what_has_no_length_after_all_stops_no_evaluation(make_runner, make):
    class Task(TinyTask):
        def __init__(self):
            super().__init__()
            self.kept = make()

    runner = make_runner({}, task=Task(), max_epochs=1)
    assert runner.run("train").metrics


class Carrying(TinyModel):
    """Two states that begin with one and the same tensor, which stays what it is; and arrays."""

    def __init__(self):
        super().__init__()
        self.register_buffer("start", torch.zeros(3))
        self.hidden = self.cell = self.start
        self.wide = torch.zeros(1).expand(3)
        self.zero = np.zeros(2)
        self.array, self.arrays = self.zero, [self.zero, self.zero]

    def carry(self):
        self.hidden, self.cell, self.wide = torch.ones(3), torch.full((3,), 2.0), torch.ones(3)
        self.array, self.arrays = np.ones(2), [np.full(2, 2.0), np.full(2, 3.0)]


def test_what_others_have_too_stays_what_it_is_where_an_attribute_becomes_another():
    model = Carrying()
    beside = Beside(model, TinyTask())
    beside.values.begin()
    model.carry()
    saved = beside.state_dict()
    resumed = Carrying()
    beside = Beside(resumed, TinyTask())
    beside.values.begin()
    beside.load_values(saved)
    assert resumed.hidden.tolist() == [1] * 3 and resumed.cell.tolist() == [2] * 3
    assert resumed.wide.tolist() == [1] * 3 and resumed.start.tolist() == [0] * 3
    assert resumed.array.tolist() == [1] * 2 and resumed.zero.tolist() == [0] * 2
    assert [array.tolist() for array in resumed.arrays] == [[2] * 2, [3] * 2]
    assert repr(beside.state_dict()) == repr(saved)


def test_an_array_that_others_have_too_stays_theirs():
    task, model, beside = sharing(partial(np.zeros, 3))
    task.bank[0] += 1
    saved = beside.state_dict()
    task, model, beside = sharing(partial(np.zeros, 3))
    beside.load_values(saved)
    assert task.bank[0] == 1 and task.bank is model.inner.bank


@pytest.mark.parametrize(
    ("make", "change"),
    [
        (list, lambda value: value.append({"loss": 1.0})),
        (dict, lambda value: value.update(a=[1])),
        (lambda: deque([0], maxlen=1), lambda value: value.append(2)),
        (set, lambda value: value.add("a")),
        (lambda: defaultdict(list), lambda value: value["a"].append(1)),
        (Meter, lambda value: value.update(torch.ones(()))),
        (Slotted, lambda value: value.add(1.0)),
        (Nested, lambda value: setattr(value, "best", 0.5)),
        (lambda: torch.zeros(2, requires_grad=True), lambda value: value.data.add_(1)),
    ],
)
def test_what_others_have_too_stays_theirs(make, change):
    task, _, beside = sharing(make)
    change(task.bank)
    saved, changed = beside.state_dict(), repr(to_plain(task.bank))
    task, model, beside = sharing(make)
    beside.load_state_dict(saved)
    beside.load_values(saved)
    assert repr(to_plain(task.bank)) == changed
    assert repr(beside.state_dict()) == repr(saved)
    assert task.bank is model.inner.bank


def test_an_object_that_is_another_leaves_the_one_before_as_it_was():
    def parts():
        task = TinyTask()
        task.meter = task.first = Meter()
        beside = Beside(TinyModel(), task)
        beside.values.begin()
        return task, beside

    task, beside = parts()
    task.meter = Meter()
    task.meter.update(torch.ones(()))
    saved = beside.state_dict()
    task, beside = parts()
    beside.load_values(saved)
    assert (task.meter.total, task.first.total) == (1, 0)


class Phase(Enum):
    WARMUP = 1
    MAIN = 2


def test_a_member_of_an_enum_comes_back_as_itself(caplog):
    def parts():
        task = TinyTask()
        task.phase, task.late = Phase.WARMUP, None
        task.phases = {"loss": Phase.WARMUP}
        beside = Beside(TinyModel(), task)
        beside.values.begin()
        return task, beside

    task, beside = parts()
    task.phase = task.late = task.phases["loss"] = Phase.MAIN
    saved = beside.state_dict()
    task, beside = parts()
    beside.load_values(saved)
    assert task.phase is task.phases["loss"] is Phase.MAIN
    assert task.late is None
    assert caplog.messages == ["task.late is not what it was in the checkpoint, and begins anew"]


def test_a_dict_that_is_kept_by_tensors_stops_no_run(make_runner):
    class Task(TinyTask):
        def __init__(self):
            super().__init__()
            self.known = {torch.ones(2): 1}

        def train_step(self, model, batch):
            self.known = {torch.ones(2): 1}
            return super().train_step(model, batch)

    assert values_after(make_runner, Task(), TinyModel()) == {}


def test_weights_that_stop_learning_in_training_are_weights(make_runner, caplog):
    """A recurrent layer lists its weights, a task may have some that are an average of others."""

    class Model(TinyModel):
        def __init__(self):
            super().__init__()
            self.recurrent, self.calls = nn.LSTM(2, 2), 0

        def forward(self, inputs):
            self.calls += 1
            self.recurrent.requires_grad_(False)
            return super().forward(inputs)

    class Task(TinyTask):
        def __init__(self):
            super().__init__()
            self.average, self.steps = nn.Parameter(torch.zeros(2), requires_grad=False), 0

        def train_step(self, model, batch):
            self.steps += 1
            self.average.lerp_(torch.ones(2), 0.5)
            return super().train_step(model, batch)

    runner = make_runner({}, task=Task(), model=Model(), max_epochs=1)
    with caplog.at_level("WARNING"):
        runner.run("train")
        state = runner.checkpointer.beside.state_dict()
    assert "no checkpoint" not in caplog.text
    assert {path: [*values] for path, values in state["values"][0].items()} == {
        "task": ["steps"],
        "model": ["calls"],
    }
    assert state["tensors"]["task.average"].tolist() == runner.task.average.tolist()


class Attends(TinyModel):
    """Keeps a map that is large, with a graph in training and without one in an evaluation."""

    def forward(self, inputs):
        outputs = super().forward(inputs)
        self.attention = outputs.sum() + torch.zeros(1100, 1000)
        return outputs


class StopsBeforeAnEvaluation(Hook):
    """As a signal does that comes when an epoch ends, so that the next process evaluates first."""

    def before_val(self, runner):
        if runner.epoch == 2:
            runner.state.stop("a signal", urgent=True)


class SavesAfterAnEvaluation(Hook):
    def after_val_epoch(self, runner, metrics=None):
        runner.save_checkpoint(f"evaluated_{runner.epoch}.pth")


def test_an_output_is_known_to_an_evaluation_that_a_resumed_run_begins_with(make_runner, tmp_path):
    def run(folder, hooks, **more):
        torch.manual_seed(0)
        hooks = {"checkpoint": CheckpointHook(), "saves": SavesAfterAnEvaluation(), **hooks}
        parts = {"model": Attends(), "work_dir": folder, "max_epochs": 3}
        make_runner(hooks, **parts, **more).run("train")

    run(tmp_path / "whole", {})
    run(tmp_path / "cut", {"stops": StopsBeforeAnEvaluation()}, resume="auto")
    run(tmp_path / "cut", {}, resume="auto")
    for name in ("evaluated_2.pth", "epoch_3.pth"):
        assert_same_end(tmp_path, name)


def test_an_attribute_that_takes_the_place_of_another_is_seen():
    task, model = TinyTask(), TinyModel()
    task.nothing, task.bank = None, torch.zeros(1)
    beside = Beside(model, task)
    beside.values.begin()
    del task.nothing
    task.steps = 3
    assert beside.state_dict()["values"] == [{"task": {"steps": [3, False, False]}}]
    del task.steps, task.bank
    task.nothing, task.late = None, 5
    assert beside.state_dict()["values"] == [{"task": {"late": [5, False, False]}}]

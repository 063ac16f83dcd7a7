"""What the model and the task keep in plain attributes comes back after a resume."""

from __future__ import annotations

from collections import deque
from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import StopAt, TinyModel, TinyTask
from torch import nn
from torchmetrics import MeanMetric

from hookexp.checkpoint.beside import Beside
from hookexp.checkpoint.reading import load_checkpoint
from hookexp.hooks.checkpoint import CheckpointHook


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


@pytest.mark.parametrize("stops", [[1], [4], [2, 5], [11, 12]])
@pytest.mark.parametrize(
    ("make_task", "make_model", "optimizer"),
    [
        (BaselineTask, TinyModel, torch.optim.SGD),
        (TinyTask, Recurrent, torch.optim.SGD),
        (TinyTask, TinyModel, Slowing),
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
    whole, resumed = (load_checkpoint(tmp_path / name / "epoch_5.pth") for name in ("whole", "cut"))
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, resumed["state_dict"][name]), name
    assert repr(whole["beside"]) == repr(resumed["beside"])


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
    """Caches, outputs, what an evaluation collects, the runner; the default parts have nothing."""
    with caplog.at_level("WARNING"):
        assert values_after(make_runner, PredictingTask(), Odd()) == {}
    assert "no checkpoint" not in caplog.text


def test_a_long_list_is_told_by_its_length(make_runner):
    class Task(TinyTask):
        def __init__(self):
            super().__init__()
            self.words, self.seen = ["a word"] * 5000, [0] * 5000

        def train_step(self, model, batch):
            self.seen.append(len(self.seen))
            return super().train_step(model, batch)

    task = Task()
    held = values_after(make_runner, task, TinyModel())
    assert held == {"task": {"seen": [task.seen, False]}}


@pytest.mark.parametrize(
    "make", [lambda: deque(maxlen=3), lambda: np.zeros(3), lambda: [np.float64(0)], set]
)
def test_what_cannot_be_held_is_told_once(make_runner, caplog, make):
    class Task(TinyTask):
        def __init__(self):
            super().__init__()
            self.kept, self.steps = make(), 0

        def train_step(self, model, batch):
            self.steps += 1
            kind = type(self.kept)
            if kind is np.ndarray:
                self.kept[0] += 1
            else:
                getattr(self.kept, "add" if kind is set else "append")(self.steps)
            return super().train_step(model, batch)

    with caplog.at_level("WARNING"):
        assert values_after(make_runner, Task(), TinyModel()) == {}
    told = [message for message in caplog.messages if "is in no checkpoint" in message]
    assert len(told) == 1 and told[0].startswith("task.kept (")


class TemperedTask(TinyTask):
    """Tunes a temperature by an optimizer of its own, and knows that of the run."""

    def setup(self, runner):
        self.of_the_run, self.runner = runner.optimizer, runner
        self.log_alpha = torch.zeros(1, requires_grad=True)
        self.optimizer = torch.optim.Adam([self.log_alpha]) if self.tunes else None

    def train_step(self, model, batch):
        loss = super().train_step(model, batch)["loss"]
        if self.tunes:
            (self.log_alpha.exp() * loss.detach()).sum().backward()
            self.optimizer.step()
        loss.backward()
        self.runner.optimizer_step()
        return {"loss": loss.detach()}


@pytest.mark.parametrize("tunes", [True, False])
def test_an_optimizer_that_the_run_does_not_have_is_told(make_runner, caplog, tunes):
    task = TemperedTask()
    task.tunes = tunes
    with caplog.at_level("WARNING"):
        hooks = {"checkpoint": CheckpointHook()}
        make_runner(hooks, task=task, max_epochs=1, with_optimizer=False).run("train")
    told = [message for message in caplog.messages if "is in no checkpoint" in message]
    assert len(told) == tunes and all(m.startswith("task.optimizer (Adam)") for m in told)


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
            {"task": {"steps": [3, False]}}
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


def test_a_look_makes_the_host_wait_for_no_device(monkeypatch):
    task, model = TinyTask(), TinyModel()
    task.bank = torch.zeros(3)
    beside = Beside(model, task)

    def step(model, batch):
        task.bank[0] += 1
        return {}

    def wait(tensor):
        raise AssertionError("the host waits")

    with monkeypatch.context() as patch:
        for name in ("tolist", "item", "cpu", "numpy", "__int__", "__float__", "__bool__"):
            patch.setattr(torch.Tensor, name, wait)
        beside.watched(step)(model, None)
    assert list(beside.state_dict()["values"][0]["task"]) == ["bank"]


def test_a_tensor_that_others_have_too_stays_theirs():
    def parts():
        task, model = TinyTask(), TinyModel()
        task.bank = model.inner.bank = torch.zeros(3)
        return task, model, Beside(model, task)

    def step(model, batch):
        task.bank[0] += 1
        return {}

    task, model, beside = parts()
    beside.watched(step)(model, None)
    saved = beside.state_dict()
    task, model, beside = parts()
    beside.load_state_dict(saved)
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
    assert held["task"]["kept"][0] is task.kept


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
    assert held == {"task": {"visited": [task.visited, False]}}


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
    Beside(TinyModel(), task).load_state_dict({"tensors": {}, "values": values, "task": None})
    assert task.steps == 7
    assert caplog.messages == [
        "resume: what task and model keep beside the weights is of 2 processes and this run has 1, "
        "so it is that of rank 0"
    ]


def test_other_ranks_are_not_told_where_there_is_nothing(caplog):
    Beside(TinyModel(), TinyTask()).load_state_dict(
        {"tensors": {}, "values": [{}, {}], "task": None}
    )
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
    Beside(make_model(), TinyTask()).load_state_dict(
        {"tensors": {}, "values": values, "task": None}
    )
    assert caplog.messages == ["model.kept is not what it was in the checkpoint, and begins anew"]

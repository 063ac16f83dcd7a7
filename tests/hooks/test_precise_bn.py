"""Statistics against those computed by hand, and training that is not touched by a bit."""

from __future__ import annotations

import copy
import os
import signal
import threading
from contextlib import suppress

import pytest
import torch
from fakes import Recorder, TinyData, TinyModel, TinyTask
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from hookexp.checkpoint.reading import load_checkpoint
from hookexp.data.loader import BatchStream
from hookexp.data.sampler import BatchSampler
from hookexp.errors import ConfigError
from hookexp.hook import Hook, Priority
from hookexp.hook_list import HookList
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.ema import EMAHook
from hookexp.hooks.freeze import FreezeHook
from hookexp.hooks.precise_bn import PreciseBnHook


class Trace(Hook):
    """The state that each training iteration and each validation begins with."""

    priority = Priority.LOWEST

    def __init__(self):
        self.trained = []
        self.evaluated = []

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        weights = [p.clone() for p in runner.model.parameters()]
        self.trained.append((*weights, data_batch[0], torch.get_rng_state()))

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        assert not any(m.training for m in runner.model.modules())
        self.evaluated.append(copy.deepcopy(runner.model))


class Dropping(TinyModel):
    def __init__(self):
        super().__init__()
        self.drop = nn.Dropout(0.5)

    def forward(self, inputs):
        inputs = inputs + 0.1 * torch.rand_like(inputs)
        return self.outer(torch.relu(self.norm(self.inner(self.drop(inputs)))))


def by_hand(model, num_batches, epoch=0, shuffle=True):
    """Means of the first batches' means and variances before the norm; no dropout."""
    data = TinyData(24)
    sampler = BatchSampler(24, 8, seed=0, shuffle=shuffle)
    sampler.set_epoch(epoch)
    inner = [model.inner(data.inputs[indices]) for indices, _ in sampler.batches()][:num_batches]
    return (
        torch.stack([x.mean(0) for x in inner]).mean(0),
        torch.stack([x.var(0) for x in inner]).mean(0),
    )


@pytest.mark.parametrize(("asked", "read"), [(2, 2), (100, 3)])
def test_the_statistics_are_those_of_the_weights_as_they_are(make_runner, asked, read):
    trace = Trace()
    make_runner({"precise_bn": PreciseBnHook(asked), "trace": trace}, max_epochs=2).run("train")
    for epoch, model in enumerate(trace.evaluated):
        mean, variance = by_hand(model, read, epoch)
        assert torch.allclose(model.norm.running_mean, mean, atol=1e-6)
        assert torch.allclose(model.norm.running_var, variance, atol=1e-6)
        assert model.norm.num_batches_tracked == 3 * (epoch + 1)
        assert model.norm.momentum == 0.1


def test_with_ema_they_are_those_of_the_averaged_weights(make_runner):
    trace = Trace()
    hooks = {"ema": EMAHook(momentum=0.1), "precise_bn": PreciseBnHook(), "trace": trace}
    runner = make_runner(hooks, max_epochs=1)
    runner.run("train")
    mean, _ = by_hand(trace.evaluated[0], 3)
    assert torch.allclose(trace.evaluated[0].norm.running_mean, mean, atol=1e-6)
    raw, _ = by_hand(runner.model, 3)
    assert not torch.allclose(mean, raw, atol=1e-4)


@pytest.mark.parametrize("budget", [{"max_epochs": 3}, {"max_iters": 9, "val_interval": 2}])
def test_training_is_not_touched(make_runner, budget):
    traces = []
    for hooks in ({"precise_bn": PreciseBnHook(2)}, {}):
        trace = Trace()
        model = Dropping()
        torch.manual_seed(1)
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        make_runner({**hooks, "trace": trace}, model=model, **budget).run("train")
        traces.append(trace)
    assert len(traces[0].trained) == 9
    for ours, plain in zip(traces[0].trained, traces[1].trained, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(ours, plain, strict=True))
    assert not torch.equal(
        traces[0].evaluated[0].norm.running_mean, traces[1].evaluated[0].norm.running_mean
    )


def test_an_endless_loader_gives_the_batches_of_its_current_round(make_runner):
    trace = Trace()
    hooks = {"precise_bn": PreciseBnHook(2), "trace": trace}
    make_runner(hooks, max_iters=5, val_interval=5).run("train")
    mean, _ = by_hand(trace.evaluated[0], 2, epoch=1)
    assert torch.allclose(trace.evaluated[0].norm.running_mean, mean, atol=1e-6)


def test_an_interval_counts_validations_and_survives_a_resume(make_runner, tmp_path):
    class Counting(PreciseBnHook):
        def _compute(self, runner, norms):
            computed.append(runner.epoch)
            super()._compute(runner, norms)

    computed = []

    def run(**more):
        hooks = {"precise_bn": Counting(interval=2), "checkpoint": CheckpointHook()}
        make_runner(hooks, work_dir=tmp_path / "r", **more).run("train")

    run(max_epochs=4)
    assert computed == [1, 3]
    computed.clear()
    run(max_epochs=6, resume="auto")
    assert computed == [5]


def test_a_validation_that_is_given_up_does_not_count(make_runner, tmp_path):
    class Counting(PreciseBnHook):
        def _compute(self, runner, norms):
            computed.append(runner.epoch)
            super()._compute(runner, norms)

    class Stop(Hook):
        def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.epoch == 1 and not runner.resumed:
                runner.state.stop("SIGTERM", urgent=True)

    computed = []

    def run(folder, hooks, **more):
        saves_at_the_stop = CheckpointHook(interval=10)
        hooks = {"precise_bn": Counting(interval=2), "checkpoint": saves_at_the_stop, **hooks}
        runner = make_runner(hooks, work_dir=tmp_path / folder, val_size=24, max_epochs=4, **more)
        runner.run("train")
        return runner.model.state_dict()

    whole = run("whole", {})
    run("cut", {"stop": Stop()})
    rest = run("cut", {"stop": Stop()}, resume="auto")
    assert computed == [1, 3, 1, 1, 3]
    assert all(torch.equal(value, rest[key]) for key, value in whole.items())


@pytest.mark.parametrize("update_buffers", [None, False, True])
@pytest.mark.parametrize("ends_by", ["a signal", "an error"])
def test_what_is_saved_in_a_validation_are_the_statistics_of_training(
    make_runner, tmp_path, update_buffers, ends_by
):
    class End(Hook):
        def before_val_iter(self, runner, batch_idx, data_batch=None):
            if ends_by == "an error":
                raise RuntimeError("boom")
            os.kill(os.getpid(), signal.SIGTERM)

    def run(name, hooks):
        ema = {} if update_buffers is None else {"ema": EMAHook(update_buffers=update_buffers)}
        saves = CheckpointHook(interval=10, save_on_exception=True)
        hooks = {**ema, "precise_bn": PreciseBnHook(), "checkpoint": saves, **hooks}
        runner = make_runner(hooks, work_dir=tmp_path / name, val_size=24, max_epochs=2)
        with suppress(RuntimeError):
            runner.run("train")
        return load_checkpoint(next(runner.work_dir.glob("*.pth")))

    class EndBefore(Hook):
        def after_train_epoch(self, runner):
            runner.state.stop("before the validation", urgent=True)

    trained, stopped = run("before", {"end": EndBefore()}), run("inside", {"end": End()})
    # Averages of statistics have been exchanged for those of the averaged weights.
    key = "state_dict" if not update_buffers else "ema_state_dict"
    assert trained[key]["norm.running_mean"].abs().max() > 0
    for name, value in trained[key].items():
        assert torch.equal(value, stopped[key][name]), name


def test_frozen_batch_norm_keeps_its_statistics(make_runner):
    recorder = Recorder()
    hooks = {"freeze": FreezeHook(["norm"]), "precise_bn": PreciseBnHook(), "recorder": recorder}
    runner = make_runner(hooks, max_epochs=1)
    runner.run("train")
    assert torch.equal(runner.model.norm.running_mean, torch.zeros(8))


def test_an_evaluation_alone_reads_no_training_data(make_runner):
    data = TinyData()
    make_runner({"precise_bn": PreciseBnHook()}, data=data).run("val")
    assert data.num_read == 0


def test_a_loader_of_the_users_own_is_read_beside_itself(make_runner):
    data = TinyData(24)
    generator = torch.Generator().manual_seed(0)
    batches = DataLoader(
        TensorDataset(data.inputs, data.targets), batch_size=8, shuffle=True, generator=generator
    )
    orders = []
    for hooks in ({"precise_bn": PreciseBnHook()}, {}):
        generator.manual_seed(0)
        trace = Trace()
        runner = make_runner({**hooks, "trace": trace}, max_epochs=2)
        runner._parts.train_loader = runner.train_loop.dataloader = BatchStream(batches)
        runner.run("train")
        orders.append([row[-2] for row in trace.trained])
    assert all(torch.equal(a, b) for a, b in zip(*orders, strict=True))


class KnowsItsPlace:
    """Rows in an order that is another one in each pass, and where in them it stands."""

    def __init__(self, batch_size=8):
        self.data, self.batch_size = TinyData(24), batch_size
        self.generator = torch.Generator().manual_seed(3)
        self.order = None

    def __iter__(self):
        if self.order is None:
            self.order = torch.randperm(24, generator=self.generator).tolist()
        while self.order:
            rows, self.order = self.order[: self.batch_size], self.order[self.batch_size :]
            yield self.data[rows if self.batch_size > 1 else rows[0]]
        self.order = None

    def state_dict(self):
        return {"order": self.order, "generator": self.generator.get_state()}

    def load_state_dict(self, state):
        self.order = state["order"]
        self.generator.set_state(state["generator"])


class RowsInPlace(KnowsItsPlace, IterableDataset):
    def __init__(self):
        super().__init__(batch_size=1)


def shuffled_by_its_own_generator():
    data, generator = TinyData(24), torch.Generator().manual_seed(0)
    rows = TensorDataset(data.inputs, data.targets)
    return DataLoader(rows, batch_size=8, shuffle=True, generator=generator)


def rows_in_place():
    return DataLoader(RowsInPlace(), batch_size=8)


@pytest.mark.parametrize("budget", [{"max_epochs": 3}, {"max_iters": 9, "val_interval": 2}])
@pytest.mark.parametrize("make", [KnowsItsPlace, rows_in_place, shuffled_by_its_own_generator])
def test_batches_of_the_users_own_are_those_of_a_run_without_it(make_runner, make, budget):
    """Also where a validation is given up and the resumed run begins it again."""

    class Stop(Hook):
        def before_val_iter(self, runner, batch_idx, data_batch=None):
            if runner.iter == 6 and not runner.resumed:
                runner.state.stop("SIGTERM", urgent=True)

    def run(name, hooks, **more):
        trace = Trace()
        saves = CheckpointHook(interval=100)
        work_dir = tmp_path / name
        torch.manual_seed(1)
        hooks = {**hooks, "checkpoint": saves, "trace": trace}
        runner = make_runner(hooks, work_dir=work_dir, val_size=16, **budget, **more)
        stream = BatchStream(make(), endless="max_iters" in budget)
        runner._parts.train_loader = runner.train_loop.dataloader = stream
        runner.run("train")
        return trace

    tmp_path = make_runner(max_epochs=1).work_dir.parent
    plain = run("plain", {})
    whole = run("whole", {"precise_bn": PreciseBnHook(2)})
    first = run("cut", {"precise_bn": PreciseBnHook(2), "stop": Stop()})
    rest = run("cut", {"precise_bn": PreciseBnHook(2)}, resume="auto")
    for trace in (plain.trained, first.trained + rest.trained):
        assert len(trace) == 9
        for row, other in zip(trace, whole.trained, strict=True):
            assert all(torch.equal(a, b) for a, b in zip(row, other, strict=True))
    means = [model.norm.running_mean for model in rest.evaluated]
    expected = [model.norm.running_mean for model in whole.evaluated[-len(means) :]]
    assert all(torch.equal(a, b) for a, b in zip(means, expected, strict=True))


def test_batches_that_cannot_be_copied_are_refused(make_runner):
    class Holding(KnowsItsPlace):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    runner = make_runner({"precise_bn": PreciseBnHook()}, max_epochs=1)
    runner._parts.train_loader = runner.train_loop.dataloader = BatchStream(Holding())
    with pytest.raises(ConfigError, match=r"precise_bn: data\.train: Holding .*cannot be copied"):
        runner.run("train")


@pytest.mark.parametrize("has_length", [True, False])
def test_by_iterations_each_computation_reads_a_pass_of_the_users_own_loader(
    make_runner, has_length
):
    class Unsized:
        def __iter__(self):
            return iter(batches)

    data = TinyData(24)
    batches = DataLoader(TensorDataset(data.inputs, data.targets), batch_size=8)
    trace = Trace()
    hooks = {"precise_bn": PreciseBnHook(2), "trace": trace}
    runner = make_runner(hooks, max_iters=5, val_interval=2)
    stream = BatchStream(batches if has_length else Unsized(), endless=True)
    runner._parts.train_loader = runner.train_loop.dataloader = stream
    runner.run("train")
    assert len(trace.evaluated) == 3
    for model in trace.evaluated:
        mean, _ = by_hand(model, 2, shuffle=False)
        assert torch.allclose(model.norm.running_mean, mean, atol=1e-6)


def test_data_that_gives_no_batch_beside_training_is_an_error(make_runner):
    class Once:
        """Gives its batches in the first pass alone."""

        num_passes = 0

        def __iter__(self):
            self.num_passes += 1
            return iter([(data.inputs, data.targets)] if self.num_passes == 1 else [])

    runner = make_runner({"precise_bn": PreciseBnHook()}, max_epochs=1)
    data = TinyData(8)
    runner._parts.train_loader = runner.train_loop.dataloader = BatchStream(Once())
    with pytest.raises(ConfigError, match=r"precise_bn: data\.train gave no batch"):
        runner.run("train")


def test_a_stream_that_is_read_once_is_refused(make_runner):
    runner = make_runner({"precise_bn": PreciseBnHook()}, max_epochs=1)
    data = TinyData(8)
    stream = iter([(data.inputs, data.targets)])
    runner._parts.train_loader = runner.train_loop.dataloader = BatchStream(stream)
    with pytest.raises(ConfigError, match="can be read only once"):
        runner.run("train")


def test_a_model_without_batch_norm_is_told(make_runner, caplog):
    class Plain(nn.Linear):
        def __init__(self):
            super().__init__(4, 1)

    make_runner({"precise_bn": PreciseBnHook()}, model=Plain(), max_epochs=1).run("train")
    assert "no batch norm" in caplog.text


def test_it_is_called_after_ema():
    hooks = HookList()
    hooks.register(EMAHook(), "ema")
    hooks.register(PreciseBnHook(), "precise_bn", priority=40)
    with pytest.raises(ConfigError, match=r"hooks\.ema \(priority 50\) has to be called before"):
        hooks.check_contracts()


@pytest.mark.parametrize("arguments", [{"num_batches": 0}, {"interval": 0}])
def test_what_is_refused(arguments):
    with pytest.raises(ValueError, match="=0: use a whole number"):
        PreciseBnHook(**arguments)


def test_an_error_in_between_puts_the_norms_back(make_runner):
    class Breaks(TinyTask):
        def train_step(self, model, batch):
            if not torch.is_grad_enabled():
                raise RuntimeError("boom")
            return super().train_step(model, batch)

    runner = make_runner({"precise_bn": PreciseBnHook()}, task=Breaks(), max_epochs=1)
    with pytest.raises(RuntimeError, match="boom"):
        runner.run("train")
    assert runner.model.norm.momentum == 0.1
    assert runner.model.norm.num_batches_tracked == 3

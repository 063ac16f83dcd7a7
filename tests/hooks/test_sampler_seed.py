"""A new order in each epoch, by the sampler or the one inside the batch sampler."""

from __future__ import annotations

from types import SimpleNamespace

import torch
from fakes import TinyData

from hookexp.hook import Hook, Priority
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.precise_bn import PreciseBnHook
from hookexp.hooks.sampler_seed import DistSamplerSeedHook


class Order(TinyData):
    def __init__(self):
        super().__init__(24)
        self.order = []

    def get_batch(self, indices, generator):
        self.order += indices.tolist()
        return super().get_batch(indices, generator)


def order_of(make_runner, **arguments):
    data = Order()
    make_runner(data=data, val_size=0, **arguments).run("train")
    return data.order


def test_each_epoch_has_an_order_of_its_own(make_runner):
    order = order_of(make_runner, max_epochs=2)
    assert sorted(order[:24]) == sorted(order[24:]) == list(range(24))
    assert order[:24] != order[24:]


def test_without_it_every_epoch_is_like_the_first(make_runner):
    from hookexp.hooks.optimizer import OptimizerHook

    order = order_of(
        make_runner, hooks={"optimizer": OptimizerHook()}, with_optimizer=False, max_epochs=2
    )
    assert order[:24] == order[24:]


def test_a_run_by_iterations_sees_the_same_orders(make_runner):
    assert order_of(make_runner, max_iters=6) == order_of(make_runner, max_epochs=2)


def test_a_validation_that_a_resumed_run_begins_with_reads_the_order_of_before_it(
    make_runner, tmp_path
):
    """For its statistics of batch norm."""

    class Norms(Hook):
        priority = Priority.LOWEST

        def __init__(self, stops):
            self.stops, self.means = stops, []

        def before_val_epoch(self, runner):
            self.means.append(runner.model.norm.running_mean.tolist())
            if self.stops and runner.epoch == 2:
                runner.state.stop("SIGTERM", urgent=True)

    def run(name, stops=False, **more):
        norms = Norms(stops)
        hooks = {"checkpoint": CheckpointHook(), "precise_bn": PreciseBnHook(2), "norms": norms}
        torch.manual_seed(0)
        make_runner(hooks, work_dir=tmp_path / name, max_epochs=3, **more).run("train")
        return norms.means

    whole = run("whole")
    assert run("cut", stops=True) == whole[:2]
    assert run("cut", resume="auto") == whole[1:]


def test_the_sampler_inside_a_batch_sampler():
    epochs = []
    inner = SimpleNamespace(set_epoch=epochs.append)
    loader = SimpleNamespace(sampler=object(), batch_sampler=SimpleNamespace(sampler=inner))
    runner = SimpleNamespace(train_dataloader=loader, epoch=3, by_epoch=True)
    DistSamplerSeedHook().before_train_epoch(runner)
    assert epochs == [3]

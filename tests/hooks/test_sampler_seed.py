"""A new order in each epoch, by the sampler or the one inside the batch sampler."""

from __future__ import annotations

from types import SimpleNamespace

from fakes import TinyData

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


def test_the_sampler_inside_a_batch_sampler():
    epochs = []
    inner = SimpleNamespace(set_epoch=epochs.append)
    loader = SimpleNamespace(sampler=object(), batch_sampler=SimpleNamespace(sampler=inner))
    runner = SimpleNamespace(train_dataloader=loader, epoch=3, by_epoch=True)
    DistSamplerSeedHook().before_train_epoch(runner)
    assert epochs == [3]

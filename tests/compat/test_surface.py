"""What hooks written by others reach for on the runner, one piece of it per test.

The hooks here have no base class of ours and are written as theirs are.
"""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from fakes import TinyData, TinyModel
from torch.utils.data import DataLoader, TensorDataset

from hookexp.checkpoint.reading import load_checkpoint
from hookexp.compat.optim_view import OptimWrapperView
from hookexp.compat.runner_view import view_of
from hookexp.errors import ConfigError
from hookexp.hook import Hook, Priority
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.optim.wrapper import OptimWrapper


def test_an_evaluation_of_a_hooks_own_begins_anew(make_runner):
    told = []

    class EvaluatesAgain:
        def after_val_epoch(self, runner, metrics=None):
            loop = runner.val_loop
            for idx, data_batch in enumerate(loop.dataloader):
                loop.run_iter(idx, data_batch)
            again = loop.evaluator.evaluate(len(loop.dataloader.dataset))
            told.append((metrics, again, runner.val_evaluator.metrics, loop.total_length))
            with torch.no_grad():
                runner.model.outer.bias += 1
            for idx, data_batch in enumerate(loop.dataloader):
                loop.run_iter(idx, data_batch)
            told.append(loop.evaluator.evaluate(0)["loss"])
            losses = [(runner.model(x) - y).square().mean().item() for x, y in loop.dataloader]
            told.append(sum(losses) / len(losses))

    make_runner({"again": EvaluatesAgain()}, max_epochs=1, val_size=16).run("train")
    (metrics, again, names, length), moved, expected = told
    assert again == metrics
    assert names == ["accuracy", "loss"]
    assert length == 2
    assert moved == pytest.approx(expected)
    assert moved != pytest.approx(metrics["loss"])


def other_batches():
    data = TinyData(40)
    return DataLoader(TensorDataset(data.inputs, data.targets), batch_size=8)


class ExchangesLoader:
    def __init__(self):
        self.seen = []

    def before_train_epoch(self, runner):
        if runner.epoch + 1 == runner.max_epochs:
            runner.train_loop.dataloader = other_batches()
        self.seen.append(len(runner.train_dataloader))


def test_a_loader_is_exchanged_between_epochs(make_runner):
    hook = ExchangesLoader()
    runner = make_runner({"exchanges": hook}, max_epochs=2)
    runner.run("train")
    assert hook.seen == [3, 5]
    assert runner.iter == 3 + 5


def test_an_exchanged_loader_is_the_one_that_our_own_hooks_see_and_the_run_closes(make_runner):
    class Ours(Hook):
        def before_train(self, runner):
            told.append((len(runner.train_dataloader), len(runner.val_dataloader)))

    class Theirs:
        def before_run(self, runner):
            data = TinyData(40)
            batches = TensorDataset(data.inputs, data.targets)
            options = {"batch_size": 8, "num_workers": 1, "persistent_workers": True}
            runner.train_loop.dataloader = DataLoader(batches, **options)
            runner.val_loop.dataloader = DataLoader(batches, **options)

    class Keep(Hook):
        priority = Priority.LOWEST

        def after_train(self, runner):
            for loop in (runner.train_loop, runner.val_loop):
                workers.extend(loop.dataloader.batches._iterator._workers)

    told, workers = [], []
    make_runner({"theirs": Theirs(), "ours": Ours(), "keep": Keep()}, max_epochs=1).run("train")
    assert told == [(5, 5)]
    assert [worker.is_alive() for worker in workers] == [False, False]


def test_a_run_by_iterations_refuses_another_loader(make_runner):
    with pytest.raises(ConfigError, match=r"train_loop\.dataloader: a run by iterations"):
        make_runner({"exchanges": ExchangesLoader()}, max_iters=3).run("train")


def test_a_hook_that_steps_by_itself(make_runner):
    class Steps:
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            wrapper = runner.optim_wrapper
            with wrapper.optim_context(runner.model):
                loss = (runner.model(data_batch[0]) - data_batch[1]).square().mean()
            if wrapper.should_update():
                wrapper.update_params(wrapper.scale_loss(loss))

    def weights(**more):
        model = TinyModel()
        model.norm.momentum = 0.0  # Its statistics would see the second forward pass.
        model.load_state_dict(start)
        runner = make_runner(model=model, max_epochs=1, val_size=0, **more)
        runner.run("train")
        return runner.state.optim_steps, model.inner.weight

    start = TinyModel().state_dict()
    steps, own = weights(hooks={"steps": Steps()}, with_optimizer=False)
    assert steps == 3
    assert torch.allclose(own, weights()[1])


def test_several_optimizers_by_name(make_runner):
    one, two = (torch.nn.Parameter(torch.ones(2)) for _ in range(2))
    wrapper = OptimWrapper(
        {
            "critic": torch.optim.SGD([one], lr=0.5, momentum=0.1),
            "actor": torch.optim.Adam([{"params": [two]}], lr=0.2),
        },
        torch.amp.GradScaler("cpu", enabled=False),
    )
    runner = make_runner()
    runner.optim_wrapper = wrapper
    view = OptimWrapperView(wrapper, runner=runner, name=None)
    assert view.get_lr() == {"critic.lr": [0.5], "actor.lr": [0.2]}
    assert view.get_momentum() == {"critic.momentum": [0.1], "actor.momentum": [0.9]}
    assert (list(view.keys()), len(view), "actor" in view) == (["critic", "actor"], 2, True)
    assert dict(view.items())["actor"].optimizer is wrapper.optimizers["actor"]
    assert [part.get_lr() for part in view.values()] == [{"lr": [0.5]}, {"lr": [0.2]}]
    view["actor"].update_params(two.sum())
    assert two.grad is None and two[0] < 1 and one[0] == 1
    assert len(view["critic"].param_groups) == 1
    with pytest.raises(KeyError, match="there are: critic, actor"):
        view["other"]


class KeepsState:
    def __init__(self):
        self.found = None
        self.info = None

    def before_save_checkpoint(self, runner, checkpoint):
        checkpoint["bank"] = {"rows": torch.full((2,), float(runner.epoch))}
        runner.message_hub.update_info("later", "too late for this file")

    def after_load_checkpoint(self, runner, checkpoint):
        self.found = checkpoint["bank"]["rows"].tolist()

    def before_train(self, runner):
        self.info = runner.message_hub.get_info("seen"), runner._resume

    def after_train_epoch(self, runner):
        runner.message_hub.update_info("seen", runner.epoch)


def test_what_a_hook_leaves_in_a_checkpoint_comes_back(make_runner):
    for resume, expected in ((None, (None, (None, False))), ("auto", ([1.0, 1.0], (0, True)))):
        hook = KeepsState()
        hooks = {"keeps": hook, "checkpoint": CheckpointHook()}
        make_runner(hooks, max_epochs=2 if resume else 1, resume=resume).run("train")
        assert (hook.found, hook.info) == expected


def test_a_learning_rate_of_numpy_can_be_saved(make_runner):
    class Interpolates:
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            for group in runner.optim_wrapper.optimizer.param_groups:
                group["lr"] = np.interp(runner.iter, [0, 2], [0.0, 0.1])

    hooks = {"interpolates": Interpolates(), "checkpoint": CheckpointHook()}
    runner = make_runner(hooks, max_epochs=1)
    runner.run("train")
    checkpoint = load_checkpoint(runner.work_dir / "epoch_1.pth")
    lr = checkpoint["optimizer"]["optimizers"]["default"]["param_groups"][0]["lr"]
    assert (type(lr), lr) == (float, 0.1)


def test_the_config_is_a_copy_that_can_be_changed(make_runner):
    runner = make_runner()
    runner.cfg = {"data": {"train": {"pipeline": [{"type": "Flip"}]}}, "seed": 1}
    cfg = view_of(runner).cfg
    part = copy.deepcopy(cfg.data)
    part.train.pipeline = [{"type": "Crop"}]
    cfg.data.size = {"height": 4}
    assert (part.train.pipeline[0].type, cfg.data.train.pipeline[0].type) == ("Crop", "Flip")
    assert view_of(runner).cfg.data.size.height == 4
    assert type(cfg.to_dict()["data"]["train"]["pipeline"][0]) is dict
    assert "'Flip'" in cfg.copy().pretty_text
    assert runner.cfg["data"] == {"train": {"pipeline": [{"type": "Flip"}]}}
    with pytest.raises(AttributeError, match="no key 'model'"):
        _ = cfg.model


def test_what_is_not_there_says_so(make_runner):
    runner = make_runner()
    view = view_of(runner)
    assert view.log_processor.window_size == 10
    view._resume = True
    assert runner.resumed
    del view
    visualizer = vars(runner).pop("_published_view").visualizer
    del runner
    with pytest.raises(RuntimeError, match="there is no run"):
        visualizer.add_scalar("a", 1.0)

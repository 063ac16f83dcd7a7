"""Hooks in MMCV's older style: methods that take the runner alone, and find all else on it."""

from __future__ import annotations

import pytest
from fakes import TinyTask

from hookexp.hook import Hook


class OlderBase:
    """Behaves as the base class of MMCV's hooks did."""

    def before_run(self, runner):
        pass

    def after_run(self, runner):
        pass

    def before_epoch(self, runner):
        pass

    def after_epoch(self, runner):
        pass

    def before_iter(self, runner):
        pass

    def after_iter(self, runner):
        pass

    def before_train_epoch(self, runner):
        self.before_epoch(runner)

    def after_train_epoch(self, runner):
        self.after_epoch(runner)

    def before_train_iter(self, runner):
        self.before_iter(runner)

    def after_train_iter(self, runner):
        self.after_iter(runner)

    def before_val_epoch(self, runner):
        self.before_epoch(runner)

    def after_val_epoch(self, runner):
        self.after_epoch(runner)

    def before_val_iter(self, runner):
        self.before_iter(runner)

    def after_val_iter(self, runner):
        self.after_iter(runner)

    def every_n_iters(self, runner, n):
        return (runner.iter + 1) % n == 0

    def end_of_epoch(self, runner):
        return runner.inner_iter + 1 == len(runner.data_loader)


class Journal(OlderBase):
    priority = "VERY_LOW"

    def __init__(self):
        self.lines = []
        self.losses = []

    def before_epoch(self, runner):
        self.lines.append(f"{runner.mode} epoch {runner.epoch}")

    def after_train_iter(self, runner):
        runner.log_buffer.update({"loss": runner.outputs["loss"].item()}, len(runner.data_batch[0]))
        self.losses.append(runner.outputs["loss"].item())
        if self.every_n_iters(runner, 2) or self.end_of_epoch(runner):
            self.lines.append(f"{runner.mode} {runner.inner_iter} lr {runner.current_lr()[0]:g}")

    def after_val_iter(self, runner):
        self.lines.append(f"{runner.mode} {runner.inner_iter} of {len(runner.data_loader)}")

    def after_run(self, runner):
        runner.mode_at_end = runner.mode
        self.lines.append(f"momentum {runner.current_momentum()[0]:g}, {runner.meta}")


class Stepper(OlderBase):
    """Halves the rate by hand and saves a checkpoint, as older hooks did."""

    def after_train_epoch(self, runner):
        for group in runner.optimizer.param_groups:
            group["lr"] *= 0.5
        runner.save_checkpoint(runner.work_dir, filename_tmpl="mine_{}.pth", create_symlink=False)


def test_two_epochs_with_validation(make_runner):
    journal, stepper = Journal(), Stepper()
    runner = make_runner({"journal": journal, "stepper": stepper}, max_epochs=2)
    runner.run("train")
    assert journal.lines == [
        "train epoch 0",
        "train 1 lr 0.1",
        "train 2 lr 0.1",
        "val epoch 1",
        "val 0 of 1",
        "train epoch 1",
        "train 0 lr 0.05",
        "train 2 lr 0.05",
        "val epoch 2",
        "val 0 of 1",
        "momentum 0.9, {}",
    ]
    assert [float(v) for v in runner.message_hub.get_scalar("train/loss").values] == journal.losses
    assert sorted(path.name for path in runner.work_dir.glob("*.pth")) == [
        "mine_1.pth",
        "mine_2.pth",
    ]
    assert runner.mode_at_end == "train"


ATTRIBUTES = [
    "model",
    "iter",
    "epoch",
    "max_iters",
    "max_epochs",
    "message_hub",
    "logger",
    "work_dir",
    "log_dir",
    "timestamp",
    "experiment_name",
    "train_loop",
    "val_loop",
    "test_loop",
    "train_dataloader",
    "val_dataloader",
    "test_dataloader",
    "optimizer",
    "optim_wrapper",
    "param_schedulers",
    "visualizer",
    "rank",
    "world_size",
    "seed",
    "cfg",
    "outputs",
    "resumed",
    "task",
    "forward_train",
    "optimizer_step",
    "save_checkpoint",
    "register_hook",
    "call_hook",
]


class Reader(Hook):
    def __init__(self):
        self.read = []

    def _note(self, runner):
        for name in ATTRIBUTES:
            assert getattr(runner, name) is not None, name
            self.read.append(name)
        for loop in (runner.train_loop, runner.val_loop, runner.test_loop):
            assert len(loop.dataloader) > 0
            assert callable(loop.run_iter)
        assert runner.train_loop.stop_training is False
        wrapper = runner.optim_wrapper
        assert wrapper.get_lr() == {"lr": [0.1]}
        assert wrapper.get_momentum() == {"momentum": [0.9]}
        assert wrapper.optimizer is runner.optimizer
        assert len(wrapper.param_groups) == 1

    def before_run(self, runner):
        self._note(runner)

    def after_run(self, runner):
        self._note(runner)


class ForeignReader:
    """The same, through the view that hooks without our base class get."""

    def __init__(self):
        self.read = []

    _note = Reader._note
    before_run = Reader.before_run
    after_run = Reader.after_run


@pytest.mark.parametrize("make", [Reader, ForeignReader])
def test_every_attribute_of_the_design_is_there_before_and_after_a_run(make_runner, make):
    reader = make()
    runner = make_runner({"reader": reader}, max_epochs=1, task=TinyTask())
    for name in ATTRIBUTES:
        getattr(runner, name)
    runner.run("train")
    assert reader.read == 2 * ATTRIBUTES


def test_what_a_view_is_asked_for_and_told(make_runner, tmp_path):
    told = {}

    class Curious:
        """No base class at all; the names of MMEngine."""

        def before_train(self, runner):
            told["folder"] = (runner.work_dir / "x", runner.work_dir.rstrip("/"))
            told["name"] = runner.work_dir.name
            told["loops"] = runner._train_loop.max_iters, runner.val_loop.val_interval
            told["resume"] = runner._resume, runner.distributed, runner.deterministic
            told["hooks"] = [type(hook).__name__ for hook in runner._hooks]
            runner.remark = "kept on the runner"
            hub = runner.message_hub
            hub.update_info("best", 3)
            hub.update_info("odd", object())
            hub.update_info_dict({"gone": 1})
            told["popped"] = hub.pop_info("gone"), "gone" in hub.runtime_info
            hub.update_scalars({"train/a": {"value": 2.0, "count": 4}, "train/b": 1.0})
            told["a"] = hub.get_scalar("train/a").statistics("mean", 5)
            told["data"] = hub.log_scalars["train/b"].data[0].tolist()

        def after_train(self, runner):
            told["stop"] = runner.train_loop.stop_training
            runner.save_checkpoint("asked.pth")

        def after_train_epoch(self, runner):
            runner.train_loop.stop_training = True

    runner = make_runner({"curious": Curious()}, max_epochs=3)
    runner.run("train")
    assert told == {
        "folder": (tmp_path / "run" / "x", str(tmp_path / "run")),
        "name": "run",
        "loops": (9, 1),
        "resume": (False, False, False),
        "hooks": ["OptimizerHook", "DistSamplerSeedHook", "Curious"],
        "popped": (1, False),
        "a": 2.0,
        "data": [1.0],
        "stop": True,
    }
    assert runner.remark == "kept on the runner"
    assert runner.epoch == 1
    assert runner.message_hub.state_dict()["infos"] == {"best": 3}
    assert (tmp_path / "run" / "asked.pth").exists()


def test_a_run_without_training_has_no_train_loop_to_read_from(make_runner):
    told = {}

    class Asks:
        def before_run(self, runner):
            told["has"] = runner._train_loop, hasattr(runner.train_loop, "run_iter")
            told["stop"] = runner.train_loop.stop_training, runner.train_loop.dataloader

    runner = make_runner({"asks": Asks()}, max_epochs=1)
    runner.train_loop = None
    runner.run("test")
    assert told == {"has": (None, False), "stop": (False, None)}


def test_pictures_numbers_and_config_reach_the_sinks(make_runner):
    from hookexp.sink import Sink

    class Shelf(Sink):
        def __init__(self):
            self.seen = []

        def log_scalars(self, scalars, step, point):
            self.seen.append((dict(scalars), step))

        def log_image(self, name, image, step):
            self.seen.append((name, tuple(image.shape), step))

        def log_config(self, config):
            self.seen.append(dict(config))

    class Draws:
        def before_val(self, runner):
            import numpy as np

            runner.visualizer.add_image("grid", np.zeros((4, 6, 3), np.uint8), step=2)
            runner.visualizer.add_scalar("mAP", np.float32(0.5), step=3)
            runner.visualizer.add_graph(runner.model, None)
            runner.visualizer.add_config({"a": 1})

    shelf = Shelf()
    make_runner({"draws": Draws()}, sinks={"shelf": shelf}, max_epochs=1).run("train")
    assert shelf.seen == [("grid", (3, 4, 6), 2), ({"mAP": 0.5}, 3), {"a": 1}]


def test_a_point_of_a_hooks_own_may_be_called_like_one_of_an_iteration(make_runner):
    class Opens(Hook):
        opens = ("after_inner_iter",)

        def after_train_epoch(self, runner):
            runner.call_hook("after_inner_iter", number=3)

    class Listens:
        def after_inner_iter(self, runner, number):
            told.append((number, runner.inner_iter))

    told = []
    make_runner({"opens": Opens(), "listens": Listens()}, max_epochs=1).run("train")
    assert told == [(3, 0)]

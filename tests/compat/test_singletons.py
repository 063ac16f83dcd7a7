"""MMEngine's global objects, as hooks reach them without a runner: also in constructors."""

from __future__ import annotations

import gc
import warnings
import weakref

import numpy as np
import pytest
from hydra import compose

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    pytest.importorskip("mmengine")
    from mmengine.logging import MessageHub, MMLogger, print_log
    from mmengine.visualization import Visualizer

import hookexp.app  # noqa: F401  (what it registers with Hydra)
from hookexp.build import build_hooks
from hookexp.compat.singletons import offer
from hookexp.compose.conf_dir import with_hydra
from hookexp.sink import Sink

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


@pytest.fixture(autouse=True)
def own_instances():
    """What a test puts in place goes with it."""
    classes = (MessageHub, MMLogger, Visualizer)
    before = [dict(cls._instance_dict) for cls in classes]
    for cls in classes:
        cls._instance_dict.clear()
    yield
    for cls, instances in zip(classes, before, strict=True):
        cls._instance_dict.clear()
        cls._instance_dict.update(instances)


class Shelf(Sink):
    def __init__(self):
        self.seen = []

    def log_scalars(self, scalars, step, point):
        self.seen.append((dict(scalars), step))

    def log_image(self, name, image, step):
        self.seen.append((name, tuple(image.shape), step))


class AsksEarly:
    """Takes the global objects in its constructor, as many drawing hooks do."""

    def __init__(self):
        self.hub = MessageHub.get_current_instance()
        self.visualizer = Visualizer.get_current_instance()
        self.hub.update_info("made by", "a constructor")

    def after_train_epoch(self, runner):
        assert self.hub is MessageHub.get_current_instance() is runner.message_hub
        assert self.visualizer is Visualizer.get_current_instance() is runner.visualizer
        self.history = self.hub.get_scalar("train/loss").data[0].tolist()
        self.hub.update_scalar("train/mine", 3)
        self.visualizer.add_scalar("norm", 0.5, step=runner.iter)
        self.visualizer.set_image(np.zeros((8, 8, 3), np.uint8))
        drawn = self.visualizer.draw_bboxes(np.array([[1, 1, 5, 5]])).get_image()
        assert drawn.any()
        self.visualizer.add_datasample("boxes", drawn, step=2)
        print_log("said by a hook", logger="current")


class WritesLosses:
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        runner.message_hub.update_scalar("train/loss", outputs["loss"])


def test_they_show_the_run(make_runner, caplog):
    offer([])
    shelf, hook = Shelf(), AsksEarly()
    hooks = {"writes": WritesLosses(), "asks": hook}
    runner = make_runner(hooks, sinks={"shelf": shelf}, max_epochs=1)
    with caplog.at_level("INFO", logger="hookexp"):
        runner.run("train")
    losses = [float(value) for value in runner.message_hub.get_scalar("train/loss").values]
    assert len(losses) == 3 and hook.history == losses
    assert runner.message_hub.get_scalar("train/mine").current() == 3
    assert runner.message_hub.get_info("made by") == "a constructor"
    assert shelf.seen == [({"norm": 0.5}, 3), ("boxes", (3, 8, 8), 2)]
    assert "said by a hook" in caplog.text


def test_the_next_run_has_its_own_and_the_last_one_goes(make_runner, tmp_path):
    hubs = []

    class Asks:
        def before_train(self, runner):
            hubs.append(MessageHub.get_current_instance())

    gone = []
    for name in ("one", "two"):
        runner = make_runner({"asks": Asks()}, work_dir=tmp_path / name, max_epochs=1)
        runner.run("train")
        assert vars(hubs[-1])["_viewed"] is runner.message_hub
        gone.append(weakref.ref(runner))
    del runner
    gc.collect()
    assert hubs[0] is not hubs[1]
    assert [ref() for ref in gone] == [None, None]


def test_they_are_there_when_hooks_are_built_from_a_config():
    overrides = ["hooks=none", f"+hooks.asks={{_target_: {__name__}.AsksEarly}}"]
    with with_hydra():
        hooks = build_hooks(compose("config", overrides=overrides))
    assert isinstance(hooks["asks"].visualizer, Visualizer)
    with pytest.raises(RuntimeError, match="there is no run"):
        hooks["asks"].visualizer.add_image("early", np.zeros((2, 2, 3), np.uint8))


def test_a_visualizer_of_the_hooks_own_package_gets_the_sinks(make_runner):
    class Labels(Visualizer):
        def draw_label(self, name):
            self.add_image(name, np.zeros((2, 4, 3), np.uint8), step=1)
            self.close()

    class Draws:
        def __init__(self):
            self.visualizer = Visualizer.get_current_instance()

        def after_train(self, runner):
            assert runner.visualizer is self.visualizer
            self.visualizer.draw_label("cat")

    Labels.get_instance("labels")
    offer([])
    shelf = Shelf()
    make_runner({"draws": Draws()}, sinks={"shelf": shelf}, max_epochs=1).run("train")
    assert shelf.seen == [("cat", (3, 2, 4), 1)]

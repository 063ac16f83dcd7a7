"""Grids as PNG files and in the sinks, read back pixel by pixel where it matters."""

from __future__ import annotations

import inspect
import math

import numpy as np
import pytest
import torch
from fakes import TinyTask
from omegaconf import OmegaConf
from PIL import Image
from torch import nn

from hookexp.compose.conf_dir import conf_dir
from hookexp.compose.instantiate import instantiate
from hookexp.hook import Priority
from hookexp.hooks import visualizer
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.logger import LoggerHook
from hookexp.hooks.visualizer import VisualizerHook
from hookexp.sink import Sink


class Squares:
    """Images (3, 8, 8) of one grey each, the brighter the later; every odd one is of class 1."""

    classes = ("even", "odd")

    def __init__(self, size, channels=3, scale=1.0):
        greys = torch.arange(size).view(size, 1, 1, 1) / size
        self.inputs = greys.expand(size, channels, 8, 8) * scale
        self.targets = torch.arange(size) % 2

    def __len__(self):
        return len(self.inputs)

    def get_batch(self, indices, generator):
        return self.inputs[indices], self.targets[indices]


class SayOdd(nn.Module):
    """Finds all images odd."""

    def __init__(self):
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(()))

    def forward(self, inputs):
        return torch.tensor([0.0, 1.0]).expand(len(inputs), 2) + self.bias


class Classify(TinyTask):
    def train_step(self, model, batch):
        return {"loss": nn.functional.cross_entropy(model(batch[0]), batch[1])}

    def val_step(self, model, batch):
        self._losses.append(self.train_step(model, batch)["loss"])
        return {"predictions": model(batch[0])}


@pytest.fixture
def run(make_runner):
    def run(hook, mode="train", data=None, more=None, batch_size=5, **settings):
        data = data or Squares(12)
        settings.setdefault("model", SayOdd())
        settings.setdefault("task", Classify())
        hooks = {"visualizer": hook, **(more or {})}
        runner = make_runner(hooks, data=data, batch_size=batch_size, val_size=12, **settings)
        for loop in (runner.val_loop, runner.test_loop):
            loop.dataloader.dataset = data
        runner.run(mode)
        return runner

    return run


def grid_of(runner, name):
    return np.array(Image.open(runner.work_dir / "visualizer" / name))


def num_tiles(grid, size=visualizer.MIN_SIDE, lines=2):
    """How many inputs are in a grid, by the rows and columns it has room for."""
    height, width = size + lines * visualizer.LINE_HEIGHT + visualizer.GAP, size + visualizer.GAP
    gap = visualizer.GAP
    assert (grid.shape[0] - gap) % height == 0 and (grid.shape[1] - gap) % width == 0
    return (grid.shape[0] - gap) // height * ((grid.shape[1] - gap) // width)


def tile(grid, n, columns, lines=2):
    side = visualizer.MIN_SIDE
    height, width = side + lines * visualizer.LINE_HEIGHT, side
    top = visualizer.GAP + n // columns * (height + visualizer.GAP)
    left = visualizer.GAP + n % columns * (width + visualizer.GAP)
    return grid[top : top + height, left : left + width]


def has_color(pixels, color):
    return bool((pixels == np.array(color)).all(-1).any())


def test_a_grid_holds_inputs_targets_and_predictions(run):
    grid = grid_of(run(VisualizerHook(), max_epochs=1), "val_iter_3.png")
    assert num_tiles(grid) == 12
    for n in range(12):
        pixels = tile(grid, n, columns=4)
        image, text = pixels[: visualizer.MIN_SIDE], pixels[visualizer.MIN_SIDE :]
        assert (image == round(255 * n / 12)).all(), "one grey, over batches of five"
        assert has_color(text, visualizer.TEXT)
        assert has_color(text, visualizer.RIGHT) == (n % 2 == 1)
        assert has_color(text, visualizer.WRONG) == (n % 2 == 0)


@pytest.mark.parametrize(
    ("arguments", "lines", "colors"),
    [
        ({"draw_pred": False}, 1, {"TEXT"}),
        ({"draw_gt": False}, 1, {"RIGHT", "WRONG"}),
        ({"draw_gt": False, "draw_pred": False}, 0, set()),
    ],
)
def test_target_and_prediction_can_be_left_out(run, arguments, lines, colors):
    grid = grid_of(run(VisualizerHook(**arguments), "test"), "test_iter_0.png")
    assert num_tiles(grid, lines=lines) == 12
    shown = {c for c in ("TEXT", "RIGHT", "WRONG") if has_color(grid, getattr(visualizer, c))}
    assert shown == colors


@pytest.mark.parametrize(("max_images", "tiles"), [(4, 4), (7, 9), (1, 1)])
def test_a_grid_has_at_most_so_many_images(run, max_images, tiles):
    grid = grid_of(run(VisualizerHook(max_images=max_images), "test"), "test_iter_0.png")
    assert num_tiles(grid) == tiles
    columns = math.isqrt(tiles)
    filled = [n for n in range(tiles) if (tile(grid, n, columns) != visualizer.BACKGROUND).any()]
    assert len(filled) == max_images


def test_two_of_them_have_grids_of_their_own(run):
    more = {"few": VisualizerHook(max_images=2)}
    runner = run(VisualizerHook(), mode="test", more=more)
    assert num_tiles(grid_of(runner, "test_iter_0.png")) == 12
    assert num_tiles(grid_of(runner, "test_iter_0_few.png")) == 2
    names = [image.name for image in runner.message_hub.outbox]
    assert names == ["visualizer/test", "visualizer/test_few"]


def test_the_interval_counts_validations_and_goes_on_after_a_resume(run, tmp_path):
    def names():
        return sorted(p.name for p in (tmp_path / "run" / "visualizer").glob("*"))

    def more():
        return {"checkpoint": CheckpointHook()}

    runner = run(VisualizerHook(interval=3), more=more(), max_epochs=5)
    assert names() == ["val_iter_9.png"]
    run(VisualizerHook(interval=3), more=more(), max_epochs=7, resume="auto")
    assert names() == ["val_iter_18.png", "val_iter_9.png"]
    runner.run("test")
    assert "test_iter_15.png" in names()


def test_the_sinks_get_what_is_in_the_file(run):
    class Keep(Sink):
        def __init__(self):
            self.images = []

        def log_image(self, name, image, step):
            self.images.append((name, step, image))

    keep = Keep()
    runner = run(
        VisualizerHook(), more={"logger": LoggerHook()}, sinks={"keep": keep}, max_epochs=1
    )
    runner.run("test")
    assert [(name, step) for name, step, _ in keep.images] == [
        ("visualizer/val", 3),
        ("visualizer/test", 3),
    ]
    for (_, _, image), name in zip(keep.images, ("val", "test"), strict=True):
        assert image.dtype == torch.uint8
        in_file = grid_of(runner, f"{name}_iter_3.png")
        assert np.array_equal(image.permute(1, 2, 0).numpy(), in_file)


@pytest.mark.parametrize(("channels", "scale"), [(1, 1.0), (3, 255)])
def test_grey_images_and_bytes_are_drawn_as_they_are(run, channels, scale):
    data = Squares(12, channels)
    if scale == 255:
        data.inputs = (data.inputs * scale).round().byte()
    grid = grid_of(run(VisualizerHook(), "test", data), "test_iter_0.png")
    greys = [tile(grid, n, columns=4)[0, 0].tolist() for n in range(12)]
    assert greys == [[round(255 * n / 12)] * 3 for n in range(12)]


def test_other_floats_are_stretched(run):
    data = Squares(12)
    data.inputs = data.inputs.clone()
    data.inputs[:, :, 0, 0], data.inputs[:, :, 0, 1] = -3.0, 5.0
    grid = grid_of(run(VisualizerHook(), "test", data), "test_iter_0.png")
    pixel = visualizer.MIN_SIDE // 8
    image = tile(grid, 0, columns=4)
    assert image[0, 0].tolist() == [0, 0, 0]
    assert image[0, pixel].tolist() == [255, 255, 255]
    assert image[pixel, 0].tolist() == [round(255 * 3 / 8)] * 3


def test_large_images_are_made_smaller(run):
    data = Squares(12)
    data.inputs = data.inputs.repeat(1, 1, 1, 1).expand(12, 3, 8, 8)
    data.inputs = nn.functional.interpolate(data.inputs, size=(400, 600))
    grid = grid_of(run(VisualizerHook(max_images=1), "test", data), "test_iter_0.png")
    text = 2 * visualizer.LINE_HEIGHT + 2 * visualizer.GAP
    width = visualizer.MAX_SIDE
    assert grid.shape[:2] == (round(width * 400 / 600) + text, width + 2 * visualizer.GAP)


def test_numbers_are_written_without_a_verdict(run):
    class Regress(TinyTask):
        def val_step(self, model, batch):
            self._losses.append(model.bias.square())
            return {"predictions": model(batch[0])[:, :1]}

    data = Squares(12)
    data.targets = data.targets.float()
    grid = grid_of(run(VisualizerHook(), "test", data, task=Regress()), "test_iter_0.png")
    assert has_color(grid, visualizer.TEXT)
    assert not has_color(grid, visualizer.RIGHT) and not has_color(grid, visualizer.WRONG)


def test_outputs_without_predictions_leave_the_targets(run):
    class Silent(Classify):
        def val_step(self, model, batch):
            super().val_step(model, batch)
            return {}

    grid = grid_of(run(VisualizerHook(), "test", task=Silent()), "test_iter_0.png")
    assert num_tiles(grid, lines=1) == 12


def test_only_the_first_rank_draws(make_runner, run, monkeypatch):
    monkeypatch.setattr(type(make_runner()), "rank", 1)
    runner = run(VisualizerHook(), "test")
    assert not (runner.work_dir / "visualizer").exists()


def test_what_is_no_image_is_said_once_and_training_goes_on(make_runner, caplog, tmp_path):
    hooks = {"visualizer": VisualizerHook()}
    make_runner(hooks, max_epochs=2, hook_budget=None).run("train")
    warnings = [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]
    assert len(warnings) == 1
    assert "inputs of shape (8, 4) cannot be drawn; it takes images" in warnings[0]
    assert not (tmp_path / "run" / "visualizer").exists()


def test_images_of_other_than_1_or_3_channels_are_no_images(run, caplog, tmp_path):
    data = Squares(12)
    data.inputs = data.inputs[:, :2]
    run(VisualizerHook(), "test", data)
    assert "inputs of shape (5, 2, 8, 8) cannot be drawn" in caplog.text
    assert not (tmp_path / "run" / "visualizer").exists()


def test_classes_have_their_names():
    words = visualizer._in_words(torch.tensor([1, 0, 1]), 2, Squares.classes)
    assert words == ["odd", "even"]
    words = visualizer._in_words(torch.tensor([0, 255, -1, 2]), 4, Squares.classes)
    assert words == ["even", "255", "-1", "2"]
    assert visualizer._in_words(torch.tensor([[0.1, 0.2, 0.0]]), 2, None) == ["1"]
    assert visualizer._in_words(torch.zeros(2, 3, 4), 2, None) == []


@pytest.mark.parametrize("name", ["interval", "max_images"])
def test_what_is_refused(name):
    with pytest.raises(ValueError, match=f"{name}=0: use a whole number, 1 or more"):
        VisualizerHook(**{name: 0})


def test_the_config_shows_every_parameter_with_its_default():
    config = OmegaConf.load(conf_dir() / "hooks" / "visualizer" / "default.yaml")
    assert config.pop("priority") is None
    made, by_default = instantiate(config, "hooks.visualizer"), VisualizerHook()
    for name, value in vars(by_default).items():
        assert name.startswith("_") or getattr(made, name) == value
    assert set(config) == {"_target_", *inspect.signature(VisualizerHook).parameters}
    assert VisualizerHook.priority == Priority.LOWEST


def test_classes_are_called_by_the_names_that_the_data_set_gives_them(run, monkeypatch):
    lines = []

    def tile(pixels, said):
        lines.append([text for text, _ in said])
        return Image.new("RGB", (8, 8))

    monkeypatch.setattr(visualizer, "_tile", tile)
    run(VisualizerHook(max_images=2), mode="test")
    assert lines == [["target even", "predicted odd"], ["target odd", "predicted odd"]]


def test_each_image_is_stretched_by_its_own_range():
    ramp = torch.arange(4.0).view(1, 1, 2, 2)
    images = visualizer._to_uint8(torch.cat([ramp, -2 * ramp]))
    assert images[0, ..., 0].flatten().tolist() == [0, 85, 170, 255]
    assert images[1, ..., 0].flatten().tolist() == [255, 170, 85, 0]


def test_a_single_number_for_each_input_is_shown_as_it_is():
    assert visualizer._in_words(torch.tensor([[0.25], [3.0]]), 2, None) == ["0.25", "3"]

"""A search on a real model: what it writes, what it suggests, and that it leaves nothing behind."""

from __future__ import annotations

import copy
import csv
import math

import numpy as np
import pytest
import torch
from fakes import Recorder, TinyModel, TinyTask
from PIL import Image

from hookexp.errors import ConfigError
from hookexp.hook import Hook, Priority
from hookexp.hooks.check_invalid_loss import CheckInvalidLossHook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.lr_finder import LrFinderHook
from hookexp.hooks.param_scheduler import ParamSchedulerHook
from hookexp.hooks.runtime_info import RuntimeInfoHook
from hookexp.optim.lr_curve import draw, smooth, smooth_both_ways, steepest
from hookexp.optim.wrapper import OptimWrapper


def rows_of(runner):
    with (runner.work_dir / "lr_finder.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: float(v) if v else None for k, v in row.items()} for row in rows]


def search(make_runner, hook, hooks=None, **more):
    more = {"max_iters": 200, "lr": 0.1, **more}
    runner = make_runner({"lr_finder": hook, **(hooks or {})}, **more)
    runner.run("train")
    return runner


def test_the_learning_rate_grows_by_the_same_factor_and_is_the_one_logged(make_runner):
    hook = LrFinderHook(start_lr=1e-4, end_lr=1e-2, num_iters=21)
    runner = search(make_runner, hook, {"info": RuntimeInfoHook()})
    lrs = [row["lr"] for row in rows_of(runner)]
    assert lrs == pytest.approx([1e-4 * 10 ** (i / 10) for i in range(21)])
    assert runner.message_hub.get_scalar("train/lr").recent() == pytest.approx(lrs)
    assert runner.iter == 21
    assert "lr_finder" in runner.state.stop_reason


def test_the_losses_are_those_of_training_at_these_rates(make_runner):
    hook = LrFinderHook(start_lr=1e-4, end_lr=1.0, num_iters=30)
    runner = make_runner({"lr_finder": hook}, max_iters=30, param_schedulers={})
    model = copy.deepcopy(runner.model)
    batches = []

    class Trace(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            batches.append(data_batch)

    runner.register_hook(Trace())
    runner.run("train")
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9)
    for row, (inputs, targets) in zip(rows_of(runner), batches, strict=True):
        optimizer.param_groups[0]["lr"] = row["lr"]
        loss = torch.nn.functional.mse_loss(model(inputs), targets)
        assert loss.item() == pytest.approx(row["loss"], rel=1e-5)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def test_a_search_that_diverges_ends_early_and_the_curve_ends_there(make_runner):
    runner = search(make_runner, LrFinderHook(start_lr=1e-3, end_lr=1e4, num_iters=100, interval=5))
    rows = rows_of(runner)
    assert len(rows) == runner.iter < 100
    assert runner.iter % 5 == 0
    inside = [row for row in rows if row["smoothed"] is not None]
    assert 0 < len(inside) < len(rows)
    averages = smooth([row["loss"] for row in rows], 0.2)
    assert averages[len(inside)] > 4 * min(averages[: len(inside)])
    assert all(a <= 4 * min(averages[: i + 1]) for i, a in enumerate(averages[: len(inside)]))


def test_a_search_that_was_interrupted_suggests_nothing(make_runner, tmp_path, caplog):
    class Interrupt(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 14:
                runner.state.stop("Ctrl-C", urgent=True)

    finder = LrFinderHook(num_iters=30, end_lr=0.1)
    hooks = {"lr_finder": finder, "interrupt": Interrupt()}
    runner = make_runner(hooks, max_iters=30, val_size=0, work_dir=tmp_path)
    runner.run("train")
    assert finder.suggestion is None and not list(tmp_path.glob("lr_finder.*"))
    assert runner.message_hub.get_info("suggestions") is None
    assert "stopped after 15 of 30 iterations, so there is nothing to suggest" in caplog.text


def test_weights_buffers_optimizer_and_rate_are_as_before(make_runner):
    runner = make_runner({"lr_finder": LrFinderHook(num_iters=20)}, max_iters=50, lr=0.3)
    for parameter in runner.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    runner.optimizer.step()
    runner.optimizer.zero_grad()
    weights = copy.deepcopy(runner.model.state_dict())
    optimizer = copy.deepcopy(runner.optimizer.state_dict())
    runner.run("train")
    assert all(torch.equal(v, weights[k]) for k, v in runner.model.state_dict().items())
    after = runner.optimizer.state_dict()
    assert after["param_groups"] == optimizer["param_groups"]
    for key, state in optimizer["state"].items():
        assert torch.equal(after["state"][key]["momentum_buffer"], state["momentum_buffer"])


def test_an_error_puts_the_weights_back_too(make_runner):
    class Bomb(Hook):
        priority = Priority.LOWEST

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 15:
                raise RuntimeError("boom")

    hook = LrFinderHook(num_iters=20)
    runner = make_runner({"lr_finder": hook, "bomb": Bomb()}, max_iters=50)
    weights = copy.deepcopy(runner.model.state_dict())
    with pytest.raises(RuntimeError, match="boom"):
        runner.run("train")
    assert all(torch.equal(v, weights[k]) for k, v in runner.model.state_dict().items())
    assert not (runner.work_dir / "lr_finder.csv").exists()


def test_no_validation_follows_the_search_and_a_save_has_the_old_weights(make_runner):
    recorder = Recorder()
    runner = make_runner(
        {
            "lr_finder": LrFinderHook(num_iters=21, end_lr=0.1),
            "checkpoint": CheckpointHook(interval=-1),
            "recorder": recorder,
        },
        max_iters=50,
        val_interval=7,
    )
    weights = copy.deepcopy(runner.model.state_dict())
    runner.run("train")
    assert recorder.points.count("before_val") == 2
    saved = torch.load(runner.work_dir / "iter_21.pth", weights_only=True)["state_dict"]
    assert all(torch.equal(saved[k], v) for k, v in weights.items())


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_groups_keep_their_ratio_and_a_rate_that_is_a_tensor_stays_one(make_runner, kind):
    runner = make_runner({"lr_finder": LrFinderHook(num_iters=10)}, max_iters=10)
    inner, outer = runner.model.inner.parameters(), runner.model.outer.parameters()
    groups = [
        {"params": list(inner), "lr": kind(0.2)},
        {"params": list(outer), "lr": kind(0.1)},
    ]
    optimizer = torch.optim.SGD(groups, momentum=0.9, fused=True)
    scaler = torch.amp.GradScaler("cpu", enabled=False)
    runner.optim_wrapper = OptimWrapper({"default": optimizer}, scaler)
    seen = []

    class Look(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen.append([float(group["lr"]) for group in optimizer.param_groups])

    runner.register_hook(Look())
    runner.run("train")
    assert [second / first for first, second in seen] == pytest.approx([0.5] * 10)
    assert seen[-1][0] == pytest.approx(10.0)
    rates = [group["lr"] for group in optimizer.param_groups]
    assert [float(rate) for rate in rates] == pytest.approx([0.2, 0.1])
    assert all(type(rate) is type(kind(0.1)) for rate in rates)


def test_several_optimizers_get_a_suggestion_each(make_runner, caplog):
    runner = make_runner({"lr_finder": LrFinderHook(num_iters=50)}, max_iters=50)
    parts = {"inner": 0.2, "outer": 0.1}
    optimizers = {
        name: torch.optim.SGD(getattr(runner.model, name).parameters(), lr=lr)
        for name, lr in parts.items()
    }
    runner.optim_wrapper = OptimWrapper(optimizers, torch.amp.GradScaler("cpu", enabled=False))
    with caplog.at_level("INFO"):
        suggested = runner.run("train").suggestions
    assert list(suggested) == ["optimizer.inner.lr", "optimizer.outer.lr"]
    inner, outer = suggested.values()
    assert inner == pytest.approx(2 * outer, rel=0.1)
    assert f"optimizer.inner.lr={inner:g} optimizer.outer.lr={outer:g}; see" in caplog.text


def test_the_picture_shows_the_curve_and_the_mark(make_runner):
    runner = search(make_runner, LrFinderHook())
    image = np.asarray(Image.open(runner.work_dir / "lr_finder.png")).astype(int)
    assert image.shape == (600, 960, 3)
    red, green, blue = image[..., 0], image[..., 1], image[..., 2]
    curve = np.argwhere((blue > 150) & (red < 80))
    assert np.unique(curve[:, 1]).size > 700  # Columns of pixels with a piece of the line.
    mark = np.argwhere((red > 150) & (green < 90) & (blue < 90))
    assert mark.size
    [artifact] = runner.message_hub.outbox
    assert artifact.path == runner.work_dir / "lr_finder.png"


def test_the_suggestion_is_where_a_known_curve_is_steepest():
    lrs = np.logspace(-6, 1, 200)
    losses = [2 - math.tanh(2 * (math.log10(lr) + 3)) + (lr / 2) ** 2 for lr in lrs]
    found = steepest(lrs, smooth_both_ways(losses, 0.2))
    assert found == pytest.approx(1e-3, rel=0.2)
    assert steepest(lrs, [1.0 + lr for lr in lrs]) is None
    assert steepest([], []) is None


def test_smoothing_keeps_a_constant_and_follows_no_later_than_the_points():
    assert smooth([3.0] * 10, 0.1) == pytest.approx([3.0] * 10)
    assert smooth([1.0, 5.0, 2.0], 1.0) == [1.0, 5.0, 2.0]
    assert smooth([0.0, 1.0], 0.5) == pytest.approx([0.0, 2 / 3])
    step = [0.0] * 50 + [1.0] * 50
    there_and_back = smooth_both_ways(step, 0.2)
    assert there_and_back[49] + there_and_back[50] == pytest.approx(1.0, abs=1e-3)


def test_a_loss_that_never_falls_gets_no_suggestion(make_runner, caplog):
    class Rising(TinyTask):
        def train_step(self, model, batch):
            losses.append(1)
            return {"loss": super().train_step(model, batch)["loss"] * 0 + len(losses)}

    losses = []
    hook = LrFinderHook(num_iters=20, divergence=100)
    runner = search(make_runner, hook, task=Rising())
    assert hook.suggestion is None
    assert "nothing to suggest" in caplog.text
    assert (runner.work_dir / "lr_finder.png").exists()


def test_a_loss_of_one_element_is_a_number_too(make_runner):
    class InAList(TinyTask):
        def train_step(self, model, batch):
            return {"loss": super().train_step(model, batch)["loss"].reshape(1)}

    curves = []
    for task in (InAList(), TinyTask()):
        curves.append(rows_of(search(make_runner, LrFinderHook(num_iters=20), task=task)))
    assert curves[0] == curves[1]


def test_a_loss_that_is_broken_from_the_start(make_runner):
    class Broken(TinyTask):
        def train_step(self, model, batch):
            return {"loss": super().train_step(model, batch)["loss"] * torch.nan}

    runner = search(make_runner, LrFinderHook(), task=Broken())
    assert runner.iter == 10
    assert len(rows_of(runner)) == 10
    assert (runner.work_dir / "lr_finder.png").exists()


def test_a_flat_curve_is_drawn():
    assert draw([1e-3, 1e-2], [1.0, 1.0], [1.0, 1.0], None).size == (960, 600)


@pytest.mark.parametrize("other", [ParamSchedulerHook, CheckInvalidLossHook])
def test_what_would_get_in_its_way_is_refused(make_runner, other):
    name = "param_scheduler" if other is ParamSchedulerHook else "check_invalid_loss"
    runner = make_runner({"lr_finder": LrFinderHook(), name: other()}, max_iters=100)
    with pytest.raises(ConfigError, match=f"lr_finder.* cannot be in one run with .*{name}"):
        runner.hooks.check_contracts()


def test_a_run_that_is_too_short_is_refused(make_runner):
    with pytest.raises(ConfigError, match=r"num_iters=100: the run has only 30 .*max_iters=100"):
        search(make_runner, LrFinderHook(), max_iters=30, model=TinyModel())
    by_epoch = make_runner({"lr_finder": LrFinderHook()}, max_epochs=2)
    with pytest.raises(ConfigError, match=r"the run has only 6 .*set trainer\.max_epochs=34"):
        by_epoch.run("train")


def test_a_rate_of_zero_to_which_others_have_no_ratio_is_refused(make_runner):
    with pytest.raises(ConfigError, match=r"optimizer\.lr=0: .*set a number above 0"):
        search(make_runner, LrFinderHook(), lr=0.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"start_lr": 1.0, "end_lr": 0.1}, "start_lr=1.0, end_lr=0.1: use numbers above 0"),
        ({"num_iters": 3}, "num_iters=3: use a whole number, 10 or more"),
        ({"smoothing": 0}, "smoothing=0: use a number above 0"),
        ({"divergence": 1}, "divergence=1: use a number above 1"),
        ({"interval": 0}, "interval=0: use a whole number of iterations"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LrFinderHook(**arguments)

"""A mistake in a model, a task or a data set of the user's own is told so that it is found."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fakes import TinyData, TinyModel, TinyTask
from torch import nn
from torch.utils.data import DataLoader, Dataset

from hookexp.data.stream import BatchStream
from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.hooks.lr_finder import LrFinderHook
from hookexp.hooks.runtime_info import RuntimeInfoHook
from hookexp.hooks.sam import SamHook
from hookexp.user_errors import metrics_of


class Returns(TinyTask):
    """Its train_step returns what a function makes of the outputs."""

    def __init__(self, change):
        super().__init__()
        self.change = change

    def train_step(self, model, batch):
        return self.change(super().train_step(model, batch))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda o: o["loss"],
            r"^task: Returns\.train_step returned a Tensor; it has to return a d",
        ),
        (lambda o: None, r"^task: train_step has to .* returned a NoneType\."),
        (
            lambda o: {"loss": o["loss"].detach()},
            r"^task: the loss of Returns\.train_step depends ",
        ),
        (lambda o: {"loss": o["loss"].item()}, r"returned \['loss'\], and loss is a float\."),
        (
            lambda o: {"loss": o["loss"].repeat(2)},
            r"^task: train_step returned 'loss' of shape \(2,\); only scalars can be logged",
        ),
        (lambda o: {"los": o["loss"]}, r"returned \['los'\], and has no loss\."),
    ],
)
def test_what_train_step_must_not_return(make_runner, change, message):
    runner = make_runner({"runtime_info": RuntimeInfoHook()}, task=Returns(change))
    with pytest.raises(ConfigError, match=message):
        runner.run("train")


@pytest.mark.parametrize(
    "hooks", [{"optimizer": SamHook()}, {"lr_finder": LrFinderHook(num_iters=10)}]
)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda o: {"los": o["loss"]}, r"returned \['los'\], and has no loss\."),
        (lambda o: {"loss": o["loss"].item()}, r"returned \['loss'\], and loss is a float\."),
        (lambda o: o["loss"], r"it returned a Tensor\."),
    ],
)
def test_a_loss_that_is_missing_is_told_alike_by_all_who_need_it(
    make_runner, hooks, change, message
):
    with_optimizer = "optimizer" not in hooks
    runner = make_runner(
        hooks, with_optimizer=with_optimizer, task=Returns(change), max_iters=10, val_size=0
    )
    with pytest.raises(ConfigError, match=message):
        runner.run("train")


def test_an_output_that_is_no_number_is_the_tasks_mistake(make_runner):
    task = Returns(lambda o: {**o, "extra": "high"})
    with pytest.raises(ConfigError, match=r"^task: train_step returned 'extra' of type str; only "):
        make_runner({"runtime_info": RuntimeInfoHook()}, task=task).run("train")


def test_a_function_of_the_same_name_as_the_loops_is_told_apart(make_runner):
    class Fails(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            def run_iter():
                raise AttributeError("of the function")

            run_iter()

    with pytest.raises(AttributeError, match="of the function"):
        make_runner({"fails": Fails()}).run("train")


def test_an_error_of_a_hook_is_not_laid_on_the_task(make_runner):
    class Fails(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                raise AttributeError("of the hook")

    class NoOutputs(TinyTask):
        def val_step(self, model, batch):
            super().val_step(model, batch)

    runner = make_runner({"fails": Fails()}, task=NoOutputs(), max_epochs=2)
    with pytest.raises(AttributeError, match="of the hook"):
        runner.run("train")


class Measures(TinyTask):
    def __init__(self, metrics):
        super().__init__()
        self.metrics = metrics

    def compute_metrics(self):
        return self.metrics


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (
            None,
            r"Measures\.compute_metrics returned a NoneType; it has to return a dict of scalars",
        ),
        ({"error": "good"}, r"compute_metrics: 'error' is a str, and no number"),
        (
            {"error": torch.ones(3)},
            r"compute_metrics: 'error' has the shape \(3,\); a metric is one",
        ),
    ],
)
def test_what_compute_metrics_must_not_return(make_runner, metrics, message):
    with pytest.raises(ConfigError, match=message):
        make_runner(task=Measures(metrics)).run("val")


@pytest.mark.parametrize("mode", ["train", "val"])
def test_an_error_of_a_forward_pass_says_what_the_batch_was(make_runner, mode):
    class TooNarrow(TinyModel):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 8)

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as error:
        make_runner(model=TooNarrow()).run(mode)
    assert error.value.__notes__ == ["the batch was: tuple(float32 (8, 4), float32 (8, 1))"]


def test_a_batch_of_many_parts_is_told_in_short(make_runner):
    data = TinyData()
    data.get_batch = lambda indices, generator: {"texts": ["a"] * 9, "mask": indices > 3}
    with pytest.raises(ValueError) as error:
        make_runner(data=data, task=Unpacks()).run("train")
    assert error.value.__notes__ == [
        "the batch was: dict(texts: list(str, str, str, str, str, str, ... 9 in all), "
        "mask: bool (8,))"
    ]


class Unpacks(TinyTask):
    def train_step(self, model, batch):
        (inputs,) = batch
        return inputs


class Ragged(Dataset):
    def __len__(self):
        return 4

    def __getitem__(self, index):
        return torch.zeros(index + 1)


def test_samples_that_make_no_batch_lead_to_collate_fn(make_runner):
    runner = make_runner(val_size=0)
    stream = BatchStream(DataLoader(Ragged(), batch_size=2))
    runner._parts.train_loader = runner.train_loop.dataloader = stream
    with pytest.raises(RuntimeError, match="equal size") as error:
        runner.run("train")
    assert "'+data.collate_fn={_target_: my_module.collate" in error.value.__notes__[0]


def test_a_metric_may_be_an_array_without_dimensions():
    class Task(TinyTask):
        def compute_metrics(self):
            return {"accuracy": np.array(0.5), "loss": np.float32(0.25)}

    assert metrics_of(Task()) == {"accuracy": 0.5, "loss": 0.25}

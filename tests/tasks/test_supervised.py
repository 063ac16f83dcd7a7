from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch import nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from hookexp.errors import ConfigError
from hookexp.models.gpt import GPT
from hookexp.tasks.supervised import MeanLoss, SupervisedTask

CONF = Path(__file__).parents[2] / "conf"


def runner_on(device: str) -> Any:
    return SimpleNamespace(device=torch.device(device))


def shipped_task(option: str) -> SupervisedTask:
    return instantiate(OmegaConf.load(CONF / "task" / f"{option}.yaml"))


@pytest.fixture
def task() -> SupervisedTask:
    accuracy = MulticlassAccuracy(num_classes=4, average="micro", validate_args=False)
    task = SupervisedTask(nn.CrossEntropyLoss(), {"accuracy": accuracy})
    task.setup(runner_on("cpu"))
    return task


def test_a_train_step_gives_a_loss_that_reaches_every_weight(task: SupervisedTask) -> None:
    model = nn.Linear(3, 4)
    loss = task.train_step(model, (torch.rand(5, 3), torch.randint(4, (5,))))["loss"]
    assert loss.shape == ()
    loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_an_evaluation_measures_all_samples_alike(task: SupervisedTask) -> None:
    torch.manual_seed(0)
    model, inputs, targets = nn.Linear(3, 4), torch.rand(7, 3), torch.randint(4, (7,))
    with torch.no_grad():
        for part in (slice(0, 5), slice(5, 7)):
            outputs = task.val_step(model, (inputs[part], targets[part]))
        logits = model(inputs)
    assert torch.allclose(outputs["predictions"], logits[5:])
    metrics = task.compute_metrics()
    assert tuple(metrics) == task.metric_names == ("accuracy", "loss")
    assert torch.allclose(metrics["loss"], F.cross_entropy(logits, targets))
    assert torch.allclose(metrics["accuracy"], (logits.argmax(1) == targets).float().mean())


def test_a_reset_forgets_the_last_evaluation(task: SupervisedTask) -> None:
    model, targets = nn.Identity(), torch.tensor([0, 1])
    with torch.no_grad():
        task.val_step(model, (10 * F.one_hot(1 - targets, 4).float(), targets))
        wrong = task.compute_metrics()
        task.reset_metrics()
        task.val_step(model, (10 * F.one_hot(targets, 4).float(), targets))
    right = task.compute_metrics()
    assert wrong["accuracy"] == 0.0 and wrong["loss"] > 5.0
    assert right["accuracy"] == 1.0 and right["loss"] < 0.1


def test_without_a_batch_the_metrics_are_nan(task: SupervisedTask) -> None:
    task.reset_metrics()
    assert all(value.isnan() for value in task.compute_metrics().values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_loss_and_metrics_stay_in_full_precision(
    task: SupervisedTask, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 4)
    batch = torch.rand(64, 3), torch.randint(4, (64,))
    with torch.autocast("cpu", dtype=dtype):
        assert model(batch[0]).dtype == dtype
        assert task.train_step(model, batch)["loss"].dtype == torch.float32
        with torch.no_grad():
            outputs = task.val_step(model, batch)
    assert outputs["predictions"].dtype == outputs["loss"].dtype == torch.float32
    assert task.compute_metrics()["loss"].dtype == torch.float32
    assert torch.allclose(task.compute_metrics()["loss"], outputs["loss"])


@pytest.mark.parametrize("option", ["classification", "language_model"])
def test_an_evaluation_step_of_a_shipped_task_never_looks_at_a_value(option: str) -> None:
    """A tensor on the meta device has no value, so reading one is an error."""
    model: nn.Module
    if option == "classification":
        model, inputs, targets = nn.Linear(3, 10), torch.rand(5, 3), torch.zeros(5).long()
    else:
        model, inputs = GPT(97, 8, 1, 1, 8), torch.zeros(5, 8, dtype=torch.int64)
        targets = inputs
    task = shipped_task(option)
    task.setup(runner_on("meta"))
    with torch.no_grad():
        for _ in range(2):
            task.val_step(model.to("meta"), (inputs.to("meta"), targets.to("meta")))
    assert {value.device.type for value in task.compute_metrics().values()} == {"meta"}


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_an_evaluation_step_on_a_gpu_never_waits_for_it() -> None:
    task = shipped_task("classification")
    task.setup(runner_on("cuda"))
    model, inputs = nn.Linear(3, 10).cuda(), torch.rand(5, 3).cuda()
    targets = torch.zeros(5, dtype=torch.int64, device="cuda")
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.no_grad():
            task.val_step(model, (inputs, targets))
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_loss_with_weights_of_its_own_moves_to_the_device() -> None:
    loss = nn.CrossEntropyLoss(weight=torch.ones(4))
    SupervisedTask(loss, {}).setup(runner_on("meta"))
    assert loss.weight is not None and loss.weight.device.type == "meta"


def test_a_plain_function_is_a_loss_and_targets_may_be_a_dict() -> None:
    task = SupervisedTask(lambda outputs, targets: F.mse_loss(outputs, targets["y"]), {})
    task.setup(runner_on("cpu"))
    inputs = torch.rand(6, 2)
    with torch.no_grad():
        task.val_step(nn.Identity(), (inputs[:5], {"y": inputs[:5]}))
        task.val_step(nn.Identity(), (inputs[5:], {"y": inputs[5:] + 1}))
    assert torch.allclose(task.compute_metrics()["loss"], torch.tensor(1 / 6))


def test_batches_with_several_targets_count_by_their_samples() -> None:
    task = SupervisedTask(lambda outputs, targets: targets[0].mean(), {})
    for values in ([0.0, 0.0, 0.0], [4.0]):
        inputs, target = torch.zeros(len(values), 2), torch.tensor(values)
        task.val_step(nn.Identity(), (inputs, [target, target]))
    assert task.compute_metrics()["loss"] == 1.0


def test_the_mean_loss_is_summed_over_ranks() -> None:
    metric = MeanLoss()
    metric.update(torch.tensor(1.0), num_samples=3)

    def gather(value: torch.Tensor, group: Any) -> list[torch.Tensor]:
        """The other rank had one sample, with a loss of 5."""
        other = {"loss_sum": 5.0, "num_samples": 1.0}
        (name,) = (name for name in other if getattr(metric, name) is value)
        return [value, torch.tensor(other[name])]

    metric.sync(dist_sync_fn=gather, distributed_available=lambda: True)
    assert metric.loss_sum / metric.num_samples == 2.0


def test_a_metric_named_loss_is_an_error() -> None:
    with pytest.raises(ValueError, match=r"task\.metrics\.loss"):
        SupervisedTask(nn.CrossEntropyLoss(), {"loss": MeanLoss()})


def test_something_else_than_a_metric_is_an_error() -> None:
    metrics: Any = {"accuracy": {"num_classes": 10}}
    with pytest.raises(ValueError, match=r"task\.metrics\.accuracy is a dict"):
        SupervisedTask(nn.CrossEntropyLoss(), metrics)


def test_metric_names_are_known_before_the_first_batch() -> None:
    assert shipped_task("classification").metric_names == ("accuracy", "loss")
    assert shipped_task("language_model").metric_names == ("perplexity", "loss")
    assert all(isinstance(m, Metric) for m in shipped_task("classification").metrics.values())


@pytest.mark.parametrize(
    ("batch", "given"),
    [
        ({"x": torch.rand(5, 3), "y": torch.zeros(5)}, "dict"),
        ((torch.rand(5, 3), torch.zeros(5), torch.zeros(5)), "tuple of 3"),
        ([torch.rand(5, 3)], "list of 1"),
        (torch.rand(2, 3), "Tensor"),
    ],
)
@pytest.mark.parametrize("step", ["train_step", "val_step"])
def test_a_batch_that_is_no_pair_says_so(task, batch, given, step) -> None:
    with pytest.raises(ConfigError, match=rf"batches of \(inputs, targets\), .* is a {given};"):
        getattr(task, step)(nn.Linear(3, 4), batch)


def test_a_batch_of_ones_own_may_be_unpacked(task) -> None:
    class Pair:
        def __iter__(self):
            return iter((torch.rand(5, 3), torch.zeros(5, dtype=torch.long)))

    assert task.train_step(nn.Linear(3, 4), Pair())["loss"].shape == ()

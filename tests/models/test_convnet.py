import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hookexp.data.digits import Digits
from hookexp.models.convnet import ConvNet, MaxPoolTo2x2

CONF = Path(__file__).parents[2] / "conf"


def optimizer_config(option: str) -> Any:
    """An option's arguments for torch's class; `param_groups` is for `build` alone."""
    config = OmegaConf.load(CONF / "optimizer" / f"{option}.yaml")
    del config["param_groups"]
    return config


def test_any_image_from_four_pixels_up_gives_logits() -> None:
    for size in (4, 8, 28):
        model = ConvNet(num_classes=7, in_channels=3, width=4)
        assert model(torch.rand(2, 3, size, size + 1)).shape == (2, 7)


@pytest.mark.parametrize("size", [(2, 3), (4, 4), (5, 9), (14, 7)])
def test_the_last_pooling_is_torchs_adaptive_one(size: tuple[int, int]) -> None:
    images = torch.rand(3, 2, *size, requires_grad=True)
    weights = torch.rand(3, 2, 2, 2)
    pooled, expected = MaxPoolTo2x2()(images), F.adaptive_max_pool2d(images, 2)
    assert torch.equal(pooled, expected)
    gradients = [torch.autograd.grad((p * weights).sum(), images)[0] for p in (pooled, expected)]
    assert torch.equal(*gradients)


@pytest.mark.parametrize("given", ["width=-3", "width=2.5", "num_classes=0", "in_channels=0"])
def test_a_count_that_is_none(given: str) -> None:
    name, value = given.split("=")
    with pytest.raises(ValueError, match=f"^{given}: use a whole number, 1 or more$"):
        ConvNet(**{name: float(value) if "." in value else int(value)})


def test_it_has_buffers_that_training_moves() -> None:
    model = ConvNet(width=4)
    before = model.features[1].running_mean.clone()
    model(torch.rand(8, 1, 8, 8))
    assert not torch.equal(model.features[1].running_mean, before)


def test_the_default_parts_reach_the_promised_accuracy_in_ten_epochs() -> None:
    torch.manual_seed(0)
    model = instantiate(OmegaConf.load(CONF / "model" / "convnet.yaml"))
    make_optimizer = instantiate(optimizer_config("sgd"))
    optimizer = make_optimizer(model.parameters())
    train, val = Digits("train"), Digits("val")
    num_steps = 10 * math.ceil(len(train) / 64)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, num_steps)
    for _ in range(10):
        for indices in torch.randperm(len(train)).split(64):
            F.cross_entropy(model(train.images[indices]), train.labels[indices]).backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
    model.eval()
    accuracy = (model(val.images).argmax(1) == val.labels).float().mean()
    assert accuracy >= 0.97


@pytest.mark.parametrize("option", ["sgd", "adam", "adamw"])
def test_every_optimizer_option_learns(option: str) -> None:
    torch.manual_seed(0)
    model = ConvNet(width=8, dropout=0.0)
    make_optimizer = instantiate(optimizer_config(option))
    optimizer = make_optimizer(model.parameters())
    images, labels = Digits("train").get_batch(torch.arange(64), torch.Generator())
    losses = []
    for _ in range(30):
        loss = F.cross_entropy(model(images), labels)
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.5 * losses[0]

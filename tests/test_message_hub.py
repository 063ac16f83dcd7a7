"""Scalars stay tensors until they are read, and cross in one copy."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction

import numpy as np
import pytest
import torch

from hookexp.message_hub import MessageHub


def test_values_are_detached_and_stay_tensors():
    hub = MessageHub()
    loss = torch.tensor(2.0, requires_grad=True) * 3
    hub.update_scalar("train/loss", loss)
    stored = hub.get_scalar("train/loss").values[-1]
    assert isinstance(stored, torch.Tensor) and not stored.requires_grad


@pytest.fixture
def copies(monkeypatch) -> list[int]:
    """How many values each copy to the host has had."""
    copies = []
    real = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: copies.append(len(t)) or real(t))
    return copies


def test_reading_gives_means_over_a_window_in_one_copy(copies):
    hub = MessageHub()
    for n in range(20):
        hub.update_scalar("train/loss", torch.tensor(float(n)))
        hub.update_scalar("train/count", torch.tensor(n, dtype=torch.int64))
        hub.update_scalar("train/lr", 0.1 * n)
        hub.update_scalar("val/loss", 99.0)
    expected = {"loss": 17.5, "count": 17.5, "lr": pytest.approx(1.9)}
    assert hub.read("train/", window=4, latest=["lr"]) == expected
    assert copies == [8]
    assert hub.read("train/", window=4, latest=["lr"]) == expected
    assert copies == [8]


def test_what_a_hook_reads_brings_the_scalars_with_it(copies):
    hub = MessageHub()
    for n in range(3):
        hub.update_scalar("train/loss", torch.tensor(float(n)))
        hub.update_scalar("val/lr", n)
    assert hub.to_host([torch.tensor(7.0), torch.tensor(8.0)]) == [7.0, 8.0]
    assert copies == [5]
    assert list(hub.get_scalar("train/loss").values) == [0.0, 1.0, 2.0]
    assert hub.read("train/", 3) == {"loss": 1.0}
    assert copies == [5]


def test_all_scalars_are_saved_after_one_copy(copies):
    hub = MessageHub()
    for key in ("a", "b"):
        hub.update_scalar(key, torch.tensor(2.0))
    hub.update_scalar("b", 3)
    assert hub.state_dict()["scalars"] == {"a": [2.0], "b": [2.0, 3.0]}
    assert copies == [2]


def test_windows_are_bounded_and_can_be_widened():
    hub = MessageHub(window=5)
    for n in range(50):
        hub.update_scalar("a", n)
    assert list(hub.get_scalar("a").values) == [45, 46, 47, 48, 49]
    hub.set_window(8)
    for n in range(50, 60):
        hub.update_scalar("a", n)
    assert len(hub.get_scalar("a").values) == 8
    window = hub.get_scalar("a")
    assert (window.current(), window.min(2), window.max(), window.mean(2)) == (59, 58, 59, 58.5)


def test_gauges_are_read_on_demand():
    hub = MessageHub()
    readings = iter([1.0, 2.0])
    hub.set_gauge("train/eta", lambda: next(readings))
    assert hub.read("val/", 1) == {}
    assert hub.read("train/", 1) == {"eta": 1.0}
    assert hub.read("train/", 1) == {"eta": 2.0}


def test_state_goes_through_plain_types():
    hub = MessageHub()
    hub.update_scalar("a", torch.tensor(1.5))
    hub.update_scalar("a", 2)
    other = MessageHub()
    other.load_state_dict(hub.state_dict())
    assert list(other.get_scalar("a").values) == [1.5, 2.0]


def test_an_unknown_scalar_lists_those_there_are():
    hub = MessageHub()
    hub.update_scalar("train/loss", 1)
    with pytest.raises(KeyError, match="train/loss"):
        hub.get_scalar("loss")


def test_numbers_of_any_type_are_read_unrounded():
    hub = MessageHub()
    large, small = 2**24 + 1, 1e-12 + 1.0
    hub.update_scalar("train/tokens", torch.tensor(large))
    hub.update_scalar("train/plain", torch.tensor(0.1))
    expected = {"tokens": large, "plain": torch.tensor(0.1).item()}
    assert hub.read("train/", 1) == expected
    hub.update_scalar("train/loss", torch.tensor([small], dtype=torch.float64))
    hub.update_scalar("train/half", torch.tensor([[0.5]], dtype=torch.bfloat16))
    expected |= {"loss": small, "half": 0.5}
    assert hub.read("train/", 1) == expected
    for name, value in expected.items():
        assert hub.read(f"train/{name}", 1) == {"": value}
    hub.update_scalar("val/plain", torch.tensor([0.1]))
    assert hub.read("val/", 1) == {"plain": torch.tensor(0.1).item()}


def test_a_scalar_of_several_elements_is_refused_where_it_is_given():
    with pytest.raises(ValueError, match=r"scalar 'train/v' is a tensor of shape \(3,\)"):
        MessageHub().update_scalar("train/v", torch.ones(3))


def test_a_value_that_replaces_is_the_only_one():
    hub = MessageHub()
    hub.update_scalars({"train/norm": 1.0, "train/norm/head": 2.0})
    hub.replace_scalar("train/norm", torch.tensor(3.0))
    hub.replace_scalar("train/new", 4.0)
    assert hub.read("train/", window=10) == {"norm": 3.0, "norm/head": 2.0, "new": 4.0}
    assert list(hub.scalars) == ["train/norm", "train/norm/head", "train/new"]


@pytest.mark.parametrize("value", ["hello", None, [1.0]])
def test_what_is_no_number_is_refused_where_it_is_given(value):
    with pytest.raises(ValueError, match=r"scalar 'train/x' is a \w+, and no number"):
        MessageHub().update_scalar("train/x", value)


@pytest.mark.parametrize("value", [np.array(1.5), np.float32(1.5), Decimal("1.5"), Fraction(3, 2)])
def test_whatever_stands_for_one_number_is_a_scalar(value):
    """An array without dimensions does, as the mean of one may be."""
    hub = MessageHub()
    hub.update_scalar("train/x", value)
    assert hub.read("train/", window=10) == {"x": 1.5}

"""Averages of many tensors against the formula, tensor by tensor."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hookexp.optim.averages import Averages


def tensors():
    torch.manual_seed(0)
    return [
        nn.Parameter(torch.randn(3, 4)),
        nn.Parameter(torch.randn(5, dtype=torch.float64)),
        nn.Parameter(torch.randn(100, 100)),
        nn.Parameter(torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last)),
        nn.Parameter(torch.randn(())),
        nn.Parameter(torch.randn(7)),
        torch.randn(0),
    ]


def change(some):
    with torch.no_grad():
        for tensor in some:
            tensor.add_(1.0)


def assert_close(values, expected):
    for value, tensor in zip(values, expected, strict=True):
        assert value.shape == tensor.shape and value.dtype == tensor.dtype
        assert torch.allclose(value, tensor.detach(), atol=1e-6)


@pytest.mark.parametrize("share", [1.0, 0.1])
def test_every_average_moves_towards_its_tensor(share):
    some = tensors()
    before = [t.detach().clone() for t in some]
    averages = Averages(some)
    assert_close(averages.values, before)
    change(some)
    averages.move(share)
    assert_close(averages.values, [b + share for b in before])
    assert_close(some, [b + 1.0 for b in before])


def test_memory_that_has_been_replaced_is_found():
    some = tensors()
    before = [t.detach().clone() for t in some]
    averages = Averages(some)
    averages.move(0.5)
    for tensor in some:
        tensor.data = (tensor.detach() + 1.0).clone()
    averages.move(0.5)
    assert_close(averages.values, [b + 0.5 for b in before])


def test_a_tensor_that_is_laid_out_anew_is_averaged_by_itself():
    some = [nn.Parameter(torch.zeros(1, 2, 4, 4)), nn.Parameter(torch.zeros(3))]
    averages = Averages(some)
    some[0].data = torch.arange(32.0).view(1, 2, 4, 4).to(memory_format=torch.channels_last)
    averages.move(0.5)
    change(some)
    averages.move(1.0)
    assert_close(averages.values, some)


def test_the_same_memory_in_another_order_is_found():
    tensor = nn.Parameter(torch.arange(9.0).view(3, 3))
    averages = Averages([tensor])
    tensor.data = tensor.data.t()
    averages.move(1.0)
    assert_close(averages.values, [tensor])


def test_values_are_exchanged_and_the_tensors_stay_the_same():
    some = tensors()
    before = [t.detach().clone() for t in some]
    averages = Averages(some)
    change(some)
    pointers = [t.data_ptr() for t in some]
    averages.exchange()
    assert_close(some, before)
    assert_close(averages.values, [b + 1.0 for b in before])
    assert [t.data_ptr() for t in some] == pointers


def test_small_tensors_share_one_memory():
    averages = Averages(tensors())
    small = [averages.values[n] for n in (0, 4, 5)]
    assert len({value.untyped_storage().data_ptr() for value in small}) == 1
    assert averages.values[2].untyped_storage().nbytes() == 4 * 100 * 100


def test_averages_may_be_on_another_device():
    averages = Averages(tensors(), torch.device("meta"))
    for share in (1.0, 0.5):
        averages.move(share)
    assert {value.device.type for value in averages.values} == {"meta"}


def test_nothing_to_average():
    Averages([]).move(0.1)

"""Devices, precision, and how batches get there."""

from __future__ import annotations

from collections import namedtuple

import pytest
import torch

from hookexp.device import autocast, batch_placer, make_current, map_tensors, resolve_device
from hookexp.errors import ConfigError


@pytest.mark.parametrize("name", ["cuda:77", "gpu", "tpu", "cpu:x"])
def test_a_device_that_is_not_there_lists_those_that_are(name):
    with pytest.raises(ConfigError, match=rf"trainer\.device={name}\b.*use one of: auto, cpu"):
        resolve_device(name)


def test_a_gpu_that_is_not_there_for_a_rank_is_told_in_one_line(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    message = r"trainer\.device=auto cannot be used here .*use one of: auto, cpu"
    with pytest.raises(ConfigError, match=message):
        resolve_device("auto", local_rank=99)


def test_the_gpu_of_a_run_is_the_one_that_torch_takes_without_a_number(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    make_current(torch.device("cpu"))
    make_current(torch.device("cuda:1"))
    assert chosen == [torch.device("cuda:1")]


def test_auto_is_a_device_of_this_machine():
    assert resolve_device("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")
    assert resolve_device("cpu") == torch.device("cpu")


def test_a_batch_on_the_cpu_is_the_very_batch():
    batch = [torch.zeros(1)]
    assert batch_placer(torch.device("cpu"), channels_last=False)(batch) is batch


@pytest.mark.parametrize("channels_last", [False, True])
def test_what_is_copied_to_a_gpu_is_in_page_locked_memory(monkeypatch, channels_last):
    locked, copied = [], []

    def empty_like(tensor, pin_memory):
        assert pin_memory
        locked.append(torch.zeros(tensor.shape))
        return locked[-1]

    monkeypatch.setattr(torch, "empty_like", empty_like)
    monkeypatch.setattr(torch.Tensor, "is_pinned", lambda tensor: any(tensor is t for t in locked))
    monkeypatch.setattr(torch.Tensor, "to", lambda tensor, *_, **how: copied.append((tensor, how)))
    place = batch_placer(torch.device("cuda"), channels_last)
    place({"x": torch.ones(1, 2, 3, 4), "y": [torch.ones(2)]})
    for (tensor, how), memory in zip(copied, locked, strict=True):
        assert tensor is memory and tensor.min() == 1 and how["non_blocking"]
    place(locked)
    assert len(locked) == 2 and [id(tensor) for tensor, _ in copied[2:]] == [*map(id, locked)]


def test_channels_last_reaches_images_inside_any_container():
    place = batch_placer(torch.device("cpu"), channels_last=True)
    images, labels = place((torch.zeros(2, 3, 4, 4), torch.zeros(2)))
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert labels.shape == (2,)


def test_tensors_are_found_in_lists_tuples_and_dicts():
    Pair = namedtuple("Pair", "a b")
    one = torch.ones(1)
    mapped = map_tensors({"x": [one, (one, "text")], "p": Pair(one, 3)}, lambda t: t + 1)
    assert mapped == {"x": [2, (2, "text")], "p": Pair(2, 3)}
    assert isinstance(mapped["p"], Pair)


def test_autocast_computes_in_half_precision_and_fp32_does_not():
    linear = torch.nn.Linear(2, 2)
    for precision, dtype in [("fp32", torch.float32), ("bf16", torch.bfloat16)]:
        with autocast(torch.device("cpu"), precision):
            assert linear(torch.zeros(1, 2)).dtype == dtype
    with pytest.raises(ConfigError, match="fp32, bf16, fp16"):
        autocast(torch.device("cpu"), "half")

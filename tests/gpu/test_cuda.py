"""What needs a GPU: copies that do not wait, half precision, and the default run on it."""

from __future__ import annotations

import pytest
import torch

from hookexp.data.prefetch import Prefetcher
from hookexp.device import batch_placer, resolve_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def test_the_prefetcher_gives_the_same_batches_on_the_device():
    device = resolve_device("auto")
    batches = [{"x": torch.full((64, 64), float(n)), "y": [torch.tensor([n])]} for n in range(20)]
    prefetch = Prefetcher(device, batch_placer(device, channels_last=False))
    got = list(prefetch(iter(batches)))
    assert len(got) == 20
    for batch, wanted in zip(got, batches, strict=True):
        assert batch["x"].device == device
        assert torch.equal(batch["x"].cpu(), wanted["x"])
        assert torch.equal(batch["y"][0].cpu(), wanted["y"][0])


def test_memory_does_not_grow_with_the_passes():
    device = resolve_device("auto")
    prefetch = Prefetcher(device, batch_placer(device, channels_last=False))
    reserved = []
    for _ in range(4):
        for batch in prefetch(iter([torch.rand(2**21) for _ in range(3)])):
            batch.mul_(2)
        torch.cuda.synchronize()
        reserved.append(torch.cuda.memory_reserved(device))
    assert reserved[3] == reserved[0]


def test_prefetching_makes_the_host_wait_for_nothing():
    device = resolve_device("auto")
    batches = [torch.rand(256, 256) for _ in range(5)]
    prefetch = Prefetcher(device, batch_placer(device, channels_last=False))
    try:
        torch.cuda.set_sync_debug_mode("error")
        for batch in prefetch(iter(batches)):
            batch.mul_(2)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_batch_in_ordinary_memory_is_placed_while_the_device_is_busy():
    device = resolve_device("auto")
    place = batch_placer(device, channels_last=False)
    batch = torch.rand(2**22)
    place(batch)  # Page-locked memory is taken once, and then used again.
    torch.cuda.synchronize()
    torch.cuda._sleep(10**9)
    is_awake = torch.cuda.Event()
    is_awake.record()
    placed = place(batch)
    assert not is_awake.query(), "the host has waited for the device"
    assert torch.equal(placed.cpu(), batch)

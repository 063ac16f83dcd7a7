"""Data that stays on the GPU: the same run, and nothing the host waits for."""

from __future__ import annotations

import pytest
import torch
from hydra import compose

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_runner
from hookexp.compose.conf_dir import with_hydra
from hookexp.compose.isolation import restored_process_state
from hookexp.data.augment import random_shift
from hookexp.data.digits import Digits
from hookexp.data.loader import MemoryLoader
from hookexp.data.prefetch import Prefetcher
from hookexp.data.sampler import BatchSampler
from hookexp.device import batch_placer, resolve_device

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


@pytest.mark.parametrize("layout", ["trainer.channels_last=false", "trainer.channels_last=true"])
def test_a_run_on_resident_data_is_the_run_on_copied_data(tmp_path, layout):
    weights = []
    for word in ("data.device_resident=true", "data.device_resident=false"):
        common = ["trainer.device=cuda", "trainer.max_iters=30", "sinks=none", "model.dropout=0"]
        common += ["trainer.deterministic=true"]
        with with_hydra():
            cfg = compose("config", overrides=[*common, word, layout, "hooks=-checkpoint"])
        folder = tmp_path / word
        folder.mkdir()
        with restored_process_state():
            runner = build_runner(cfg, folder)
            runner.run("train")
        weights.append(runner.model.state_dict())
    for key, value in weights[0].items():
        torch.testing.assert_close(value, weights[1][key], rtol=1e-3, atol=1e-4, msg=key)


def test_making_batches_makes_the_host_wait_for_nothing():
    device = resolve_device("auto")
    data = Digits("train").to(device)
    sampler = BatchSampler(len(data), 64, seed=0, shuffle=True)
    loader = MemoryLoader(data, sampler, device, random_shift)
    prefetch = Prefetcher(device, batch_placer(device, channels_last=True))
    list(loader)
    try:
        torch.cuda.set_sync_debug_mode("error")
        batches = list(prefetch(loader.iterate(0)))
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert len(batches) == len(sampler) and batches[0][0].device == device
    again = list(loader.iterate(3))
    for one, two in zip(batches[3:], again, strict=True):
        assert torch.equal(one[0], two[0]) and torch.equal(one[1], two[1])

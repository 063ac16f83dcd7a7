"""One batch ahead, without a GPU: tests/gpu has what needs one."""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch

from hookexp.data.prefetch import Prefetcher


class SideStream:
    made = 0

    def __init__(self, device):
        SideStream.made += 1

    @staticmethod
    def wait_stream(other):
        pass


@pytest.fixture
def prefetcher(monkeypatch):
    monkeypatch.setattr(SideStream, "made", 0)
    monkeypatch.setattr(torch.cuda, "Stream", SideStream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SideStream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    return Prefetcher(torch.device("cuda"), lambda batch: batch)


def test_one_batch_is_read_ahead(prefetcher):
    read = []

    def batches():
        for number in range(3):
            read.append(number)
            yield torch.tensor(number)

    for number, batch in enumerate(prefetcher(batches())):
        assert batch == number
        assert read == [*range(min(number + 2, 3))]
    assert len(read) == 3


def test_all_passes_have_one_stream(prefetcher):
    for _ in range(3):
        list(prefetcher(iter([torch.zeros(1)])))
    assert SideStream.made == 1

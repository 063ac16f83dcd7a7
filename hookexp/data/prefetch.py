"""Copying the next batch to the GPU while the current one is trained on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from hookexp.device import map_tensors


class Prefetcher:
    """Keeps one batch ahead on a side stream; the host waits for no copy.

    Args:
        device: a CUDA device.
        place: puts a batch on the device, as `device.batch_placer` returns it.
    """

    def __init__(self, device: torch.device, place: Callable[[Any], Any]) -> None:
        self._device = device
        self._place = place

    def __call__(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches, in the same order, on the device."""
        ahead = self._copy_next(batches)
        while ahead is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            batch = map_tensors(ahead[0], partial(_in_use_on, current))
            ahead = self._copy_next(batches)
            yield batch

    @cached_property
    def _stream(self) -> torch.cuda.Stream:
        """One for all passes, as memory that was taken for one stream is kept for it alone."""
        return torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]

    def _copy_next(self, batches: Iterator[Any]) -> list[Any] | None:
        """The next batch in a box, on its way to the device; None after the last."""
        for batch in batches:
            if _is_there(batch):
                # What is still being computed on the current stream is nobody else's to read.
                return [self._place(batch)]
            with torch.cuda.stream(self._stream):
                return [self._place(batch)]
        return None


def _is_there(batch: Any) -> bool:
    """Whether any tensor of a batch is on a GPU already."""
    found: list[Tensor] = []
    map_tensors(batch, found.append)  # type: ignore[arg-type]
    return any(tensor.is_cuda for tensor in found)


def _in_use_on(stream: torch.cuda.Stream, tensor: Tensor) -> Tensor:
    """Keep the allocator from giving the memory to the side stream while `stream` reads it."""
    if tensor.is_cuda:
        tensor.record_stream(stream)
    return tensor

"""`digests`: what tensors hold as one number each, to tell whether it has changed."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

_AT_ONCE_ON_CPU, _AT_ONCE_ELSEWHERE = 2**16, 2**22
"""Elements that are looked at together: what a cache holds, and what is worth a launch."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def digests(tensors: Sequence[Tensor]) -> list[int | None]:
    """Numbers that other contents on the same device would not have; None for no plain memory.

    The host waits once for each device.
    """
    totals = [_total(tensor) for tensor in tensors]
    numbers: list[int | None] = [None] * len(tensors)
    for device in {total.device for total in totals if total is not None}:
        here = [(n, t) for n, t in enumerate(totals) if t is not None and t.device == device]
        values = torch.stack([total for _, total in here]).tolist()
        for (index, _), value in zip(here, values, strict=True):
            numbers[index] = value
    return numbers


def version(tensor: Tensor) -> int:
    """How often it was changed in place, but through `.data`; not counted in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


def _total(tensor: Tensor) -> Tensor | None:
    if is_lazy(tensor) or tensor.layout is not torch.strided or tensor.is_quantized:
        return None
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().reshape(-1)
    bits = flat.view(_INTEGERS[flat.element_size()])
    weights = _weights(bits.device)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for some in torch.split(bits, len(weights)):
        total = 31 * total + (weights[: len(some)] * some).sum()
    return total


@cache
def _weights(device: torch.device) -> Tensor:
    """Odd numbers of 64 bits, always the same."""
    number = _AT_ONCE_ON_CPU if device.type == "cpu" else _AT_ONCE_ELSEWHERE
    weights = torch.randint(-(2**62), 2**62, (number,), generator=torch.Generator()) * 2 + 1
    return weights.to(device)

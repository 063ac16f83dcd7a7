"""`digest`: a tensor's values as one number, to tell whether they have changed."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

_AT_ONCE = 2**16
"""Elements that are looked at together, which bounds the memory that takes."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


@torch.no_grad()
def digest(tensor: Tensor) -> int | None:
    """A number that another content would not have; None for what has no plain memory."""
    if is_lazy(tensor) or tensor.layout is not torch.strided or tensor.is_quantized:
        return None
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).detach().reshape(-1)
    bits = flat.view(_INTEGERS[flat.element_size()])
    weights = _weights()[: len(bits)].to(bits.device)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for some in torch.split(bits, _AT_ONCE):
        total = 31 * total + (weights[: len(some)] * some).sum()
    return int(total)


@cache
def _weights() -> Tensor:
    """Odd numbers of 64 bits, always the same."""
    return torch.randint(-(2**62), 2**62, (_AT_ONCE,), generator=torch.Generator()) * 2 + 1

"""`Digest`: what a tensor holds as one number, to tell whether it has changed."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

_AT_ONCE_ON_CPU, _AT_ONCE_ELSEWHERE = 2**16, 2**20
"""Elements that are looked at together: what a cache holds, and what is worth a launch."""
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class Digest:
    """What a tensor held, as a number that other contents on the same device would not have.

    The number is on that device until it is `read`, and None for what has no plain memory.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.number: int | None = None
        self._unread = _total(tensor)

    @staticmethod
    def read(digests: Iterable[Digest]) -> None:
        """Have all numbers on the host, which waits once for each device."""
        by_device: dict[torch.device, list[tuple[Digest, Tensor]]] = {}
        for digest in digests:
            if digest._unread is not None:
                by_device.setdefault(digest._unread.device, []).append((digest, digest._unread))
        for found in by_device.values():
            numbers = torch.stack([total for _, total in found]).tolist()
            for (digest, _), number in zip(found, numbers, strict=True):
                digest.number, digest._unread = number, None


def digests(tensors: Sequence[Tensor]) -> list[int | None]:
    """The numbers of tensors' digests, read at once."""
    made = [Digest(tensor) for tensor in tensors]
    Digest.read(made)
    return [digest.number for digest in made]


def version(tensor: Tensor) -> int:
    """How often it was changed in place, but through `.data`; not counted in inference mode."""
    return 0 if tensor.is_inference() else tensor._version


@torch.no_grad()
def _total(tensor: Tensor) -> Tensor | None:
    if is_lazy(tensor) or tensor.layout is not torch.strided or tensor.is_quantized:
        return None
    if tensor.is_meta or tensor.is_nested:
        return None
    tensor = tensor.detach().resolve_conj().resolve_neg()
    flat = (torch.view_as_real(tensor) if tensor.is_complex() else tensor).reshape(-1)
    bits = flat.view(_INTEGERS[flat.element_size()])
    weights = _weights(bits.device)
    total = torch.zeros((), dtype=torch.int64, device=bits.device)
    for some in torch.split(bits, len(weights)):
        total = 31 * total + (weights[: len(some)] * some).sum()
    return total


@cache
def _weights(device: torch.device) -> Tensor:
    """Odd numbers of 64 bits, always the same; made there, so that the host waits for no copy."""
    number = _AT_ONCE_ON_CPU if device.type == "cpu" else _AT_ONCE_ELSEWHERE
    generator = torch.Generator(device).manual_seed(0)
    return torch.randint(-(2**62), 2**62, (number,), generator=generator, device=device) * 2 + 1

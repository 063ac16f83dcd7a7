"""`Averages`: running averages of tensors, moved on in as few calls as the device allows.

On a GPU one multi-tensor call moves them all. On a CPU such a call is a loop, in which a small
tensor costs as much as a page of numbers; so there the small ones are averaged as one flat tensor,
of which the averages are views.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

_SMALL = 4096
"""Elements up to which copying a tensor into the flat one is cheaper than a call of its own."""


class Averages:
    """An average beside each of some floating-point tensors; it begins as a copy.

    Args:
        tensors: what is averaged. Their values may change, and so may their memory.
        device: where the averages are kept; None is where each tensor is.
    """

    def __init__(self, tensors: Sequence[Tensor], device: torch.device | None = None) -> None:
        self.tensors = list(tensors)
        self.values = [t.detach().to(device or t.device, copy=True) for t in tensors]
        """The averages, in the order of the tensors."""
        self._are_elsewhere = device is not None
        self._arrange()

    @torch.no_grad()
    def move(self, share: float) -> None:
        """values += share * (tensors - values); a share of 1 copies."""
        if _places(self._small) != self._places:
            self._arrange()
        averages = [flat for flat, _ in self._flats] + self._others[0]
        tensors = [torch.cat(parts) for _, parts in self._flats] + self._others[1]
        if self._are_elsewhere:
            tensors = [t.to(a.device) for a, t in zip(averages, tensors, strict=True)]
        if not averages:
            return
        if share == 1.0:
            torch._foreach_copy_(averages, tensors)
        else:
            torch._foreach_lerp_(averages, tensors, share)

    @torch.no_grad()
    def exchange(self) -> None:
        """Exchange values, not tensors: whoever holds a parameter goes on holding the right one."""
        for tensor, average in zip(self.tensors, self.values, strict=True):
            held = tensor.clone()
            tensor.copy_(average)
            average.copy_(held)

    def _arrange(self) -> None:
        """Put the averages of small tensors into one flat tensor for each type."""
        places: dict[torch.dtype, list[int]] = {}
        others = []
        for index, tensor in enumerate(self.tensors):
            if _is_small(tensor):
                places.setdefault(tensor.dtype, []).append(index)
            else:
                others.append(index)
        self._flats: list[tuple[Tensor, list[Tensor]]] = []
        for indices in places.values():
            flat = torch.cat([self.values[i].reshape(-1) for i in indices])
            parts = torch.split(flat, [self.tensors[i].numel() for i in indices])
            for index, part in zip(indices, parts, strict=True):
                self.values[index] = part.view(self.tensors[index].shape)
            self._flats.append((flat, [self.tensors[i].detach().view(-1) for i in indices]))
        self._small = [self.tensors[i] for indices in places.values() for i in indices]
        self._places = _places(self._small)
        self._others = [self.values[i] for i in others], [self.tensors[i] for i in others]


def _places(tensors: list[Tensor]) -> list[int]:
    """Where the numbers of tensors stand, in their order; what is laid out otherwise differs."""
    return [t.data_ptr() if t.is_contiguous() else -1 for t in tensors]


def _is_small(tensor: Tensor) -> bool:
    is_plain = tensor.device.type == "cpu" and tensor.layout is torch.strided
    return is_plain and tensor.numel() <= _SMALL and tensor.is_contiguous()

"""A copy of a checkpoint in host memory, made as fast as memory allows.

Training may go on as soon as the copy exists, while another thread writes it. The buffers are kept
and used again by the next save: their pages are in memory already, which makes the copy several
times faster than one into fresh memory.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor

_Layout = tuple[torch.Size, tuple[int, ...], torch.dtype, bool]
"""Shape, strides, type, and whether it is to be filled from a GPU."""


class HostCopy:
    """Copies nested dicts, lists, tuples and sets with their tensors; other values are shared."""

    def __init__(self) -> None:
        self._buffers: dict[_Layout, list[Tensor]] = {}
        """All there are; what is copied into one is nothing but what fits."""
        self._free: dict[_Layout, list[Tensor]] = {}
        self._copies: dict[int, list[tuple[Tensor, Tensor]]] = {}
        """Buffers, each with what it is for, by where that is in memory."""

    @torch.no_grad()
    def copy(self, value: Any) -> Any:
        """The same structure with tensors of its own on the host. Overwrites the copy before it.

        Tensors are copied when all are known: a copy throws the memory that Python works with out
        of the processor's caches, and in between the two it would be read again for each tensor.
        """
        self._free, self._copies = {form: [*some] for form, some in self._buffers.items()}, {}
        copied = self._copy(value)
        pairs = [pair for some in self._copies.values() for pair in some]
        for buffer, tensor in pairs:
            buffer.copy_(tensor, non_blocking=True)
        for gpu in {tensor.device for _, tensor in pairs if tensor.is_cuda}:
            torch.cuda.synchronize(gpu)
        self._drop_free()
        self._copies = {}
        return copied

    def _drop_free(self) -> None:
        for layout, some in self._free.items():
            del self._buffers[layout][: len(some)]  # The last ones are the first to be used.

    def _copy(self, value: Any) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value)
        if isinstance(value, dict):
            # A module's state_dict has the versions of its modules in an attribute.
            copied = copy.copy(value)
            for key, item in value.items():
                copied[key] = self._copy(item)
            return copied
        if type(value) in (list, tuple, set):
            if _ATOMS.issuperset(map(type, value)):
                return type(value)(value)
            return type(value)(map(self._copy, value))
        return value

    def _copy_tensor(self, tensor: Tensor) -> Tensor:
        if tensor.layout is not torch.strided:
            return tensor.to("cpu", copy=True)  # A sparse gradient of an open window.
        here = self._copies.setdefault(tensor.data_ptr(), [])
        for buffer, other in here:
            if _is_same(tensor, other):
                return buffer  # Tied weights stay one tensor, in memory and in the file.
        layout = tensor.shape, tensor.stride(), tensor.dtype, tensor.is_cuda
        free = self._free.get(layout)
        if free:
            buffer = free.pop()
        else:
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._buffers.setdefault(layout, []).append(buffer)
        here.append((buffer, tensor))
        return buffer


def _is_same(one: Tensor, two: Tensor) -> bool:
    """Of two tensors that begin at one place in memory. Those without elements begin nowhere."""
    return (
        one.numel() > 0
        and (one.shape, one.stride(), one.dtype) == (two.shape, two.stride(), two.dtype)
        and (one.is_conj(), one.is_neg()) == (two.is_conj(), two.is_neg())
    )


_ATOMS = frozenset((type(None), bool, int, float, str, bytes))
"""What takes one look to know of a list, such as the 625 numbers of a generator's state."""


def num_bytes(value: Any) -> int:
    """Bytes of all tensors in what `HostCopy` copies; tied ones count once each name."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(num_bytes, value.values()))
    if isinstance(value, (list, tuple, set)) and not _ATOMS.issuperset(map(type, value)):
        return sum(map(num_bytes, value))
    return 0

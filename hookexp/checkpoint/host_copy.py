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

_Layout = tuple[torch.Size, tuple[int, ...], torch.dtype]
_Path = tuple[Any, ...]
"""Keys and positions on the way to a value; joined to one text, two ways could read the same."""


class HostCopy:
    """Copies nested dicts, lists, tuples and sets with their tensors; other values are shared."""

    def __init__(self) -> None:
        self._buffers: dict[_Path, tuple[_Layout, Tensor]] = {}
        self._before: dict[_Path, tuple[_Layout, Tensor]] = {}
        self._seen: dict[tuple[int, bool, bool, _Layout], Tensor] = {}
        self._gpus: set[torch.device] = set()

    @torch.no_grad()
    def copy(self, value: Any) -> Any:
        """The same structure with tensors of its own on the host. Overwrites the copy before it."""
        self._before, self._buffers, self._seen = self._buffers, {}, {}
        copied = self._copy(value, ())
        self._before, self._seen = {}, {}
        for gpu in self._gpus:
            torch.cuda.synchronize(gpu)
        return copied

    def _copy(self, value: Any, path: _Path) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value, path)
        if isinstance(value, dict):
            # A module's state_dict has the versions of its modules in an attribute.
            copied = copy.copy(value)
            for key, item in value.items():
                copied[key] = self._copy(item, (*path, key))
            return copied
        if type(value) in (list, tuple, set):
            if _ATOMS.issuperset(map(type, value)):
                return type(value)(value)
            return type(value)(self._copy(v, (*path, n)) for n, v in enumerate(value))
        return value

    def _copy_tensor(self, tensor: Tensor, path: _Path) -> Tensor:
        if tensor.layout is not torch.strided:
            return tensor.to("cpu", copy=True)  # A sparse gradient of an open window.
        layout = tensor.shape, tensor.stride(), tensor.dtype
        key = tensor.data_ptr(), tensor.is_conj(), tensor.is_neg(), layout
        if key in self._seen and tensor.numel():
            return self._seen[key]  # Tied weights stay one tensor, in memory and in the file.
        known, buffer = self._before.get(path, (None, tensor))
        if known != layout:
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        if tensor.is_cuda:
            self._gpus.add(tensor.device)
        self._buffers[path] = layout, buffer
        self._seen[key] = buffer.copy_(tensor, non_blocking=True)
        return buffer


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

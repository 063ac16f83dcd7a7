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

_TensorKey = tuple[int, torch.Size, tuple[int, ...], torch.dtype]
_Path = tuple[Any, ...]
"""Keys and positions on the way to a value; joined to one text, two ways could read the same."""


class HostCopy:
    """Copies nested dicts, lists, tuples and sets with their tensors; other values are shared."""

    def __init__(self) -> None:
        self._buffers: dict[_Path, Tensor] = {}
        self._gpus: set[torch.device] = set()

    def copy(self, value: Any) -> Any:
        """The same structure with tensors of its own on the host. Overwrites the copy before it."""
        used: dict[_Path, Tensor] = {}
        copied = self._copy(value, (), used, {})
        self._buffers = used
        for gpu in self._gpus:
            torch.cuda.synchronize(gpu)
        return copied

    def _copy(
        self, value: Any, path: _Path, used: dict[_Path, Tensor], seen: dict[_TensorKey, Tensor]
    ) -> Any:
        if isinstance(value, Tensor) and value.layout is not torch.strided:
            return value.detach().to("cpu", copy=True)  # A sparse gradient of an open window.
        if isinstance(value, Tensor):
            # Tied weights stay one tensor, in memory and in the file.
            key = (value.data_ptr(), value.shape, value.stride(), value.dtype)
            if value.numel() == 0 or key not in seen:
                seen[key] = used[path] = self._copy_tensor(value.detach(), path)
            return seen[key]
        if isinstance(value, dict):
            # A module's state_dict has the versions of its modules in an attribute.
            copied = copy.copy(value)
            for key, item in value.items():
                copied[key] = self._copy(item, (*path, key), used, seen)
            return copied
        if type(value) in (list, tuple, set):
            if _ATOMS.issuperset(map(type, value)):
                return type(value)(value)  # The state of a generator alone is 625 numbers.
            return type(value)(self._copy(v, (*path, n), used, seen) for n, v in enumerate(value))
        return value

    def _copy_tensor(self, tensor: Tensor, path: _Path) -> Tensor:
        buffer = self._buffers.get(path)
        if buffer is None or _layout(buffer) != _layout(tensor):
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
        if tensor.is_cuda:
            self._gpus.add(tensor.device)
        return buffer.copy_(tensor, non_blocking=True)


_ATOMS = frozenset((type(None), bool, int, float, str, bytes))


def _layout(tensor: Tensor) -> tuple[torch.Size, tuple[int, ...], torch.dtype]:
    return tensor.shape, tensor.stride(), tensor.dtype


def num_bytes(value: Any) -> int:
    """Bytes of all tensors in what `HostCopy` copies; tied ones count once each name."""
    if isinstance(value, Tensor):
        return value.numel() * value.element_size()
    if isinstance(value, dict):
        return sum(map(num_bytes, value.values()))
    if isinstance(value, (list, tuple, set)):
        return sum(map(num_bytes, value))
    return 0

"""The device of a run: which one, how batches get there, and in which precision it computes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

from hookexp.errors import ConfigError
from hookexp.precision import PRECISIONS


def resolve_device(name: str, local_rank: int = 0) -> torch.device:
    """The device of `trainer.device`: `auto` is the GPU if there is one, else the CPU.

    Raises:
        ConfigError: for a name torch does not know or a device this machine does not have.
    """
    try:
        device = torch.device(_best_device() if name == "auto" else name)
    except (RuntimeError, TypeError):
        raise ConfigError(
            f"trainer.device={name}: there is no such device; use one of: auto, cpu, cuda, "
            "cuda:N, mps"
        ) from None
    try:
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local_rank)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"trainer.device={name} cannot be used here ({reason}); "
            f"use one of: {', '.join(_usable_devices())}"
        ) from None
    return device


def make_current(device: torch.device) -> None:
    """Let `cuda` without a number mean the run's GPU: in user code, and where torch itself asks.

    Else each rank would also take memory of the first GPU.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)


def _best_device() -> str:
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def _usable_devices() -> list[str]:
    names = ["auto", "cpu"]
    names += [f"cuda:{i}" for i in range(torch.cuda.device_count())]
    return [*names, "mps"] if torch.backends.mps.is_available() else names


def autocast(device: torch.device, precision: str) -> AbstractContextManager[Any]:
    """The reusable context of the forward pass; free for fp32.

    Raises:
        ConfigError: for a precision that does not exist.
    """
    if precision not in PRECISIONS:
        raise ConfigError(f"trainer.precision={precision}: use one of {', '.join(PRECISIONS)}")
    if precision == "fp32":
        return nullcontext()
    return torch.autocast(device.type, dtype=getattr(torch, PRECISIONS[precision]))


def batch_placer(device: torch.device, channels_last: bool) -> Callable[[Any], Any]:
    """A function that puts a batch on the device; the host does not wait for a GPU to have it.

    On the CPU it returns the very batch.
    """
    if device.type == "cpu" and not channels_last:
        return lambda batch: batch

    def place_tensor(tensor: Tensor) -> Tensor:
        if device.type == "cuda":
            tensor = _page_locked(tensor)
        if channels_last and tensor.dim() == 4:
            return tensor.to(device, non_blocking=True, memory_format=torch.channels_last)
        return tensor.to(device, non_blocking=True)

    return lambda batch: map_tensors(batch, place_tensor)


def _page_locked(tensor: Tensor) -> Tensor:
    """A tensor, or a copy of it: only from such memory, and of one piece, a GPU copies by itself.

    From other memory it does once all that was launched before is done, and the host waits.
    """
    is_plain = tensor.layout is torch.strided and not tensor.is_nested
    if tensor.device.type != "cpu" or not is_plain or tensor.is_pinned():
        return tensor
    return torch.empty_like(tensor, pin_memory=True).copy_(tensor)


def map_tensors(batch: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """The batch with `function` applied to each tensor in its lists, tuples and dicts."""
    if isinstance(batch, Tensor):
        return function(batch)
    if isinstance(batch, Mapping):
        return {key: map_tensors(value, function) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(map_tensors(value, function) for value in batch))
    if isinstance(batch, (list, tuple)):
        return type(batch)(map_tensors(value, function) for value in batch)
    return batch

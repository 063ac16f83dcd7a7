"""Ranks: how many processes train together, and which one this is.

A single process is rank 0 of 1; nothing here needs `torch.distributed` to be initialised.
"""

from __future__ import annotations

import gc
import os
from typing import Any

import torch
import torch.distributed as td
from torch import nn


def rank() -> int:
    """This process's number, 0 without `torch.distributed`."""
    return td.get_rank() if td.is_available() and td.is_initialized() else 0


def world_size() -> int:
    """How many processes train together, 1 without `torch.distributed`."""
    return td.get_world_size() if td.is_available() and td.is_initialized() else 1


def local_rank() -> int:
    """This process's number on its machine, which is the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def launched_by_torchrun() -> bool:
    """Whether the environment says that this process is one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def init() -> None:
    """Join the process group that torchrun has set up in the environment, once.

    With gloo beside NCCL plain objects stay in the host's memory, and a run may choose the CPU.
    """
    if launched_by_torchrun() and not td.is_initialized():
        td.init_process_group("cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo")


def broadcast(value: Any) -> Any:
    """Rank 0's value of a plain object, on every rank."""
    if world_size() == 1:
        return value
    box = [value]
    td.broadcast_object_list(box, src=0)
    return box[0]


def gather(value: Any) -> list[Any]:
    """A plain object of each rank, in the order of ranks, on every rank."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    td.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Return when all ranks have come here."""
    gather(None)


def close() -> None:
    """Leave the process group, if this process is in one.

    A finished run is a cycle of references that keeps the group alive through its
    `DistributedDataParallel`; threads of the group that outlive the interpreter abort the process.
    """
    if td.is_available() and td.is_initialized():
        gc.collect()
        td.destroy_process_group()


def unwrap(model: nn.Module) -> nn.Module:
    """The model itself, without the wrapper that synchronises gradients between ranks."""
    if isinstance(model, nn.parallel.DistributedDataParallel):
        inner: nn.Module = model.module
        return inner
    return model

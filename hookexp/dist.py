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

from hookexp.signals import unhandled


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


def launcher() -> str:
    """What starts as many processes once more, before `-m`."""
    if not launched_by_torchrun():
        return "python"
    here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    machines = int(os.environ["WORLD_SIZE"]) // here
    return f"torchrun {f'--nnodes {machines} ' if machines > 1 else ''}--nproc-per-node {here}"


def init() -> None:
    """Join the process group that torchrun has set up in the environment, once.

    With gloo beside NCCL plain objects stay in the host's memory, and a run may choose the CPU.

    torchrun keeps its store when it restarts the ranks, and with it the addresses of those that are
    no more (torch 2.13, its issue 135712). It counts restarts for each machine, so only where there
    is one does the count tell the present ranks apart.
    """
    if not launched_by_torchrun() or td.is_initialized():
        return
    from torch.distributed.rendezvous import rendezvous  # Not all builds of torch have it.

    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    with unhandled():  # There is nothing to save yet, and another rank may never come.
        store, rank, world_size = next(iter(rendezvous("env://")))
        if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
            store = td.distributed_c10d.PrefixStore(
                os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store
            )
        td.init_process_group(backend, store=store, rank=rank, world_size=world_size)


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

"""Buffers that each rank has its own values of, such as the statistics of batch norm.

DistributedDataParallel hands rank 0's to all before a forward pass, but only after one that ranks
have synchronised their gradients in: not inside an accumulation window, nor after a validation.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hookexp import dist

_FLAG = "require_forward_param_sync"
"""Of DistributedDataParallel: whether the next forward pass begins with rank 0's buffers."""


def state_of(model: nn.Module) -> dict[str, Any]:
    """The buffers that are not the same on all ranks, by rank; with several ranks alone."""
    found = ((name, buffer.detach()) for name, buffer in dist.unwrap(model).named_buffers())
    buffers = {name: b.cpu() for name, b in found if b.layout is torch.strided}
    digests = dist.gather([_digest(buffer) for buffer in buffers.values()])
    differing = [n for n, *of_ranks in zip(buffers, *digests, strict=True) if len({*of_ranks}) > 1]
    of_ranks = dist.gather({name: buffers[name] for name in differing})
    return {"of_ranks": of_ranks, _FLAG: getattr(model, _FLAG, True)}


@torch.no_grad()
def load_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Put back what `state_of` returned, if it is of as many ranks."""
    if len(state["of_ranks"]) != dist.world_size():
        return
    ours = state["of_ranks"][dist.rank()]
    for name, buffer in dist.unwrap(model).named_buffers():
        if name in ours and ours[name].shape == buffer.shape:
            buffer.copy_(ours[name])
    if hasattr(model, _FLAG):
        setattr(model, _FLAG, state[_FLAG])


def _digest(buffer: Tensor) -> bytes:
    as_bytes = buffer.contiguous().view(-1).view(torch.uint8)
    return hashlib.sha256(as_bytes.numpy().tobytes()).digest()

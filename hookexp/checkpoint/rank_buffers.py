"""Buffers that each rank has its own values of, such as the statistics of batch norm.

DistributedDataParallel hands rank 0's to all before a forward pass, but only after one that ranks
have synchronised their gradients in: not inside an accumulation window, nor after a validation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hookexp import dist
from hookexp.checkpoint.digest import digests

HANDS_OUT_BUFFERS = "require_forward_param_sync"
"""Of DistributedDataParallel: whether the next forward pass begins with rank 0's buffers."""


def state_of(model: nn.Module) -> dict[str, Any]:
    """The buffers that are not the same on all ranks, by rank; with several ranks alone."""
    buffers = {name: buffer.detach() for name, buffer in dist.unwrap(model).named_buffers()}
    return {
        "of_ranks": of_ranks(buffers),
        HANDS_OUT_BUFFERS: getattr(model, HANDS_OUT_BUFFERS, True),
    }


def of_ranks(tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
    """Those that are not the same on all ranks, as each rank has them."""
    numbers = dict(zip(tensors, digests([*tensors.values()]), strict=True))
    found = dist.gather(numbers)
    differing = [name for name in tensors if len({of_rank.get(name) for of_rank in found}) > 1]
    return dist.gather({name: tensors[name].cpu() for name in differing})


@torch.no_grad()
def load_state(model: nn.Module, state: Mapping[str, Any]) -> None:
    """Put back what `state_of` returned, if it is of as many ranks."""
    if len(state["of_ranks"]) != dist.world_size():
        return
    ours = state["of_ranks"][dist.rank()]
    for name, buffer in dist.unwrap(model).named_buffers():
        if name in ours and ours[name].shape == buffer.shape:
            buffer.copy_(ours[name])
    if hasattr(model, HANDS_OUT_BUFFERS):
        setattr(model, HANDS_OUT_BUFFERS, state[HANDS_OUT_BUFFERS])

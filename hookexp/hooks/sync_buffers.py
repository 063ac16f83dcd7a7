"""`SyncBuffersHook`: buffers that all ranks have a part in, not the first one alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as td
from torch import Tensor

from hookexp import dist
from hookexp.hook import Hook, Priority

if TYPE_CHECKING:
    from hookexp.runner import Runner


class SyncBuffersHook(Hook):
    """Replaces the model's buffers by their mean over the ranks.

    Of buffers, such as the statistics of batch norm, those of rank 0 count: before the first
    forward pass of a step, and of a validation, torch's DistributedDataParallel hands them to all
    ranks, so what the others have seen is lost. What is averaged here is therefore what each rank's
    batches of the last step have added; for statistics of many batches of all ranks there is
    hooks=+precise_bn.

    They are averaged after each training epoch, and before a validation if training went on since
    (in runs by iterations). Integers, such as counters, have no mean and are those of rank 0
    afterwards. Whether there are ranks is asked at each call; a single process has nothing to do.

        torchrun --nproc_per_node=2 -m hookexp hooks=+sync_buffers
    """

    priority = Priority.NORMAL

    def __init__(self) -> None:
        self._synced_at_iter = -1

    def after_train_epoch(self, runner: Runner) -> None:
        self._sync_if_trained(runner)

    def before_val(self, runner: Runner) -> None:
        # Not `before_val_epoch`: weights that another hook swaps in there are not trained ones.
        self._sync_if_trained(runner)

    def state_dict(self) -> dict[str, Any]:
        """A validation that is run again after a resume finds them synchronised already."""
        return {"synced_at_iter": self._synced_at_iter}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._synced_at_iter = state["synced_at_iter"]

    def _sync_if_trained(self, runner: Runner) -> None:
        if self._synced_at_iter != runner.iter:
            self._synced_at_iter = runner.iter
            self._sync(runner)

    def _sync(self, runner: Runner) -> None:
        if dist.world_size() > 1:
            _average_over_ranks(runner.model.buffers())


@torch.no_grad()
def _average_over_ranks(buffers: Iterable[Tensor]) -> None:
    """One exchange for each device and type, not one for each buffer."""
    groups: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}
    for buffer in buffers:
        groups.setdefault((buffer.device, buffer.dtype), []).append(buffer)
    for (_, dtype), members in groups.items():
        flat = torch.cat([buffer.reshape(-1) for buffer in members])
        if dtype.is_floating_point or dtype.is_complex:
            td.all_reduce(flat)
            flat /= dist.world_size()
        else:
            td.broadcast(flat, src=0)
        parts = torch.split(flat, [buffer.numel() for buffer in members])
        for buffer, part in zip(members, parts, strict=True):
            buffer.copy_(part.view_as(buffer))

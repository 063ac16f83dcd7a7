"""Why, by its data, a resumed run may not be exact or ranks may train on the same batches."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from hookexp import dist
from hookexp.data.settings import joined, owners_of
from hookexp.data.tracking import Stateful, generators_of, outer_and_stateful, samplers_of
from hookexp.errors import ConfigError
from hookexp.seed import GENERATORS

logger = logging.getLogger("hookexp")
_SHOWN = 8


def doubts_about(batches: Iterable[Any], is_stateful: bool) -> str:
    """Why a pass over batches may not go on as it would have; empty if it does."""
    if isinstance(batches, DataLoader):
        return _doubts_about_loader(batches, is_stateful)
    if is_stateful or isinstance(batches, (list, tuple)):
        return ""
    return _has_no_state(batches)


def doubts_about_shares(batches: Iterable[Any], num_ranks: int) -> str:
    """Why each of several ranks may train on the same batches; empty if they share them out.

    They do where a sampler counts `num_replicas`, as torch's does, or where what is iterated over
    says `shards_itself = True`.
    """
    dataset = getattr(batches, "dataset", batches)
    parts = (batches, dataset, *samplers_of(batches))
    is_shared = any(hasattr(p, "num_replicas") or getattr(p, "shards_itself", False) for p in parts)
    if num_ranks == 1 or is_shared:
        return ""
    return (
        f"each of the {num_ranks} ranks reads all of {type(dataset).__name__}, unless it gives a "
        "rank its share: do so in __iter__ by torch.distributed.get_rank() and get_world_size(), "
        "and write shards_itself = True in its class; a map-style data set is shared out for you"
    )


def doubts_about_order(loader: DataLoader[Any]) -> str:
    """Why the batches of a loader may come in another order; empty if they do not."""
    if loader.num_workers == 0 or getattr(loader, "in_order", True):
        return ""
    return (
        "in_order=False gives batches as workers have them ready: no two runs are the same, and "
        "one that is resumed may leave some out and give others twice"
    )


def own_generators_of(dataset: Any, held: Sequence[torch.Generator] = ()) -> str:
    """Why the samples of a map-style data set may not be those of before; empty if they are.

    Args:
        held: generators that go on where they stood.
    """
    own = ((joined(w, n), value) for w, o in owners_of(dataset) for n, value in vars(o).items())
    for name, value in own:
        if isinstance(value, GENERATORS) and all(value is not one for one in held):
            return (
                f"{type(dataset).__name__}.{name} is a generator of its own, which no checkpoint "
                "holds: a run that is resumed is exact only if samples do not draw from it; "
                "the global ones of Python, NumPy and torch go on exactly"
            )
    return ""


def refuse_another_number(batch: Any, indices: Tensor, who: str) -> None:
    """Refuse a batch that was made of fewer samples than were asked for, or of more.

    Raises:
        ConfigError: for one of arrays that all have the same other length. Of others nobody can
            tell, such as of packed samples, or of several views of each.
    """
    number = len(indices)
    parts = [*batch.values()] if isinstance(batch, dict) else batch
    parts = parts if isinstance(parts, (list, tuple)) else [parts]
    if not all(isinstance(part, (Tensor, np.ndarray)) and part.ndim for part in parts):
        return
    lengths = {len(part) for part in parts}
    is_open = len(lengths) != 1 or all(part.ndim == 1 for part in parts)
    if is_open or any(number in part.shape[:2] for part in parts):
        return
    (found,) = lengths
    if found < number or found % number:
        raise ConfigError(
            f"{who} returned {found} samples for {number} indices, "
            f"{', '.join(map(str, indices[:_SHOWN].tolist()))}{', ...' * (number > _SHOWN)}; it "
            "has to return one for each"
        )


def exact_length_of(source: Any) -> int | None:
    """How many batches a DataLoader is sure to give; None where somebody else's word counts."""
    if type(source) is not DataLoader or isinstance(source.dataset, IterableDataset):
        return None
    of_torch = all(type(one).__module__.startswith("torch.") for one in samplers_of(source))
    return len(source) if of_torch else None


def refuse_early_end(source: Any, number: int, promised: int | None) -> None:
    """Refuse the end of a pass that came early: a DataLoader takes any StopIteration for it.

    Raises:
        ConfigError: if it promised more batches.
    """
    if promised is not None and number < promised:
        raise ConfigError(
            f"data: {type(source).__name__} gave {number} of its {promised} batches: its data set "
            "or its collate_fn raised StopIteration, as next() does, which looks like the end"
        )


def tell_of_number(dataset: Any, name: str) -> None:
    """One line on a number of a data set that changes when samples are read."""
    if dist.rank() == 0:
        logger.warning(
            "%s.%s changes when samples are read, and no checkpoint holds it: a resumed run is "
            "exact only if samples do not depend on it; what a sample is should follow from its "
            "index and from random numbers, or be set by a hook",
            *(type(dataset).__name__, name),
        )


def _doubts_about_loader(loader: DataLoader[Any], is_stateful: bool) -> str:
    kind = type(loader.dataset).__name__
    if out_of_order := doubts_about_order(loader):
        return out_of_order
    if isinstance(loader.dataset, IterableDataset):
        if is_stateful:
            return ""
        if isinstance(loader.dataset, Stateful):
            return (
                f"the state of {kind} is in the {loader.num_workers} workers' copies and cannot be "
                "saved: a run that is resumed reads and drops the batches before, and is exact "
                "only if it gives the same ones again; data.num_workers=0 resumes exactly"
            )
        return _has_no_state(loader.dataset)
    outer, _ = outer_and_stateful(loader)
    foreign = [one for one in outer if not type(one).__module__.startswith("torch.")]
    own = ""
    if loader.num_workers == 0:  # Workers have copies of the data set, new ones in each pass.
        held = [] if is_stateful else generators_of(loader)
        own = own_generators_of(loader.dataset, held)
    if not is_stateful:
        return _has_no_state(foreign[0]) if foreign else own
    if isinstance(loader, Stateful) and loader.generator is not None:
        return (
            f"{type(loader).__name__} has a generator of its own: a run that is resumed is exact "
            "only if its state_dict holds that one too; without one its sampler has its own"
        )
    if loader.num_workers > 0:
        return (
            "the samples continue exactly after a resume, but what the DataLoader's "
            f"{loader.num_workers} workers draw at random begins anew; give the data set itself as "
            "data.train and its loader is made with a seed for each sample"
        )
    if foreign and not isinstance(loader, Stateful):
        return (
            f"{type(foreign[0]).__name__} has no state_dict and load_state_dict: a run that is "
            "resumed is exact only if it keeps nothing from batch to batch"
        )
    return own


def _has_no_state(source: Any) -> str:
    return (
        f"{type(source).__name__} has no state_dict and load_state_dict: a run that is resumed "
        "reads and drops the batches before, and is exact only if it gives the same ones again"
    )

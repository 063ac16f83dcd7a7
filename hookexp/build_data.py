"""From the config group `data` to loaders: samples by index, from memory, or ready batches."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader, IterableDataset

from hookexp import dist
from hookexp.compose.checks import require_target, whole_number
from hookexp.compose.instantiate import instantiate
from hookexp.compose.wording import listed, nearest
from hookexp.data.doubts import doubts_about_order, doubts_about_shares, own_generators_of
from hookexp.data.loader import (
    InMemory,
    Loader,
    MemoryLoader,
    Movable,
    WorkerLoader,
    called,
    is_sample_dataset,
)
from hookexp.data.sampler import BatchSampler
from hookexp.data.stream import BatchStream
from hookexp.data.tracking import generators_of
from hookexp.errors import ConfigError, kind_of
from hookexp.hook import Mode
from hookexp.settings import TrainerSettings

_DATA_SOURCES = ("train", "val", "test")
_SAMPLER_OPTIONS = ("batch_size", "eval_batch_size", "shuffle", "drop_last")
_MEMORY_OPTIONS = ("device_resident", "transform")
_SET_HERE = (
    *("dataset", "batch_size", "shuffle", "drop_last", "sampler", "batch_sampler"),
    *("generator", "worker_init_fn"),
)
"""Arguments of torch's DataLoader that are not a config's to set, or that a sampler of ours has."""


def build_loaders(
    data: DictConfig,
    splits: Sequence[Mode],
    settings: TrainerSettings,
    device: torch.device,
    seed: int,
) -> dict[Mode, Loader]:
    """The loaders of those of the splits that the config has data for.

    Raises:
        ConfigError: naming the setting, for one that cannot be, or that training data of this
            kind would not heed.
    """
    whole_number(data, "num_workers", 0, "data.")
    given = [split for split in splits if data.get(split) is not None]
    sources = {split: instantiate(data[split], f"data.{split}") for split in given}
    if "train" in sources and data.get("collate_fn") is not None:
        _refuse_unused_collate(sources)
    loaders = {
        split: _loader(data, split, source, settings, device, seed)
        for split, source in sources.items()
    }
    _tell_of_shared_generators(loaders.get("train"), loaders.get("val"))
    return loaders


def _loader(
    data: DictConfig,
    split: Mode,
    source: Any,
    settings: TrainerSettings,
    device: torch.device,
    seed: int,
) -> Loader:
    path = f"data.{split}"
    training = split == "train"
    endless = training and not settings.by_epoch
    options = _loader_options(data)
    if not isinstance(source, InMemory):
        _refuse_memory_options(options, source, path)
    if not is_sample_dataset(source):
        return _stream(source, endless, settings.limit_of(split), training)
    batch_size = _batch_size(data, training, source)
    worker_options = _worker_options(options, device)
    if (collate := _function(data, "collate_fn", "a list of samples")) is not None:
        worker_options["collate_fn"] = collate
    if batch_size is None:
        loader = DataLoader(source, None, **worker_options)
        return _stream(loader, endless, settings.limit_of(split), training)
    if isinstance(source, IterableDataset):
        drop_last = training and options.get("drop_last", False)
        loader = DataLoader(source, batch_size, drop_last=drop_last, **worker_options)
        return _stream(loader, endless, settings.limit_of(split), training)
    if not hasattr(source, "__len__"):
        raise ConfigError(
            f"{path}: {type(source).__name__} has no length; give it __len__, or derive it from "
            "torch.utils.data.IterableDataset with __iter__ in place of __getitem__"
        )
    if len(source) == 0:
        raise ConfigError(f"{path}: the data set is empty; {type(source).__name__} has length 0")
    sampler = BatchSampler(
        num_samples=len(source),
        batch_size=batch_size,
        seed=seed,
        shuffle=training and options.get("shuffle", True) and not settings.overfit_batches,
        drop_last=training and options.get("drop_last", False),
        endless=endless,
        limit=settings.limit_of(split),
        rank=dist.rank(),
        world_size=dist.world_size(),
        repeat=training,
    )
    if training and len(sampler) == 0:
        raise ConfigError(
            f"{path}: {len(source)} samples make no batch of {batch_size} with "
            "data.drop_last=true; use a smaller data.batch_size"
        )
    if training:
        _tell_doubts(own_generators_of(source))
    if isinstance(source, InMemory):
        transform = _function(data, "transform", "(batch, generator)") if training else None
        if not options.get("device_resident"):
            return MemoryLoader(source, sampler, transform=transform)
        return MemoryLoader(_moved(source, device, path), sampler, device, transform)
    by_sample = WorkerLoader(source, sampler, **worker_options)
    if training:
        _tell_doubts(doubts_about_order(by_sample.dataloader))
    return by_sample


def _batch_size(data: DictConfig, training: bool, source: Any) -> int | None:
    """Samples per batch; None where each item of a data set is a batch."""
    own = not training and data.get("eval_batch_size") is not None
    key = "eval_batch_size" if own else "batch_size"
    if key not in data:
        raise ConfigError(
            "data.batch_size: is missing; give the samples of each batch, such as batch_size: 64, "
            "beside train and val"
        )
    if data[key] is None and not isinstance(source, InMemory):
        return None
    return whole_number(data, key, 1, "data.")


def _loader_options(data: DictConfig) -> dict[str, Any]:
    """The settings of loaders. A key that is none is for the config itself: it is referred to."""
    of_torch = [n for n in inspect.signature(DataLoader).parameters if n not in _SET_HERE]
    known = (*_SAMPLER_OPTIONS, *_MEMORY_OPTIONS, *of_torch)
    options = {k: v for k, v in plain(data, resolve=True).items() if k not in _DATA_SOURCES}
    for key in [k for k in options if k not in known]:
        if not re.search(rf"\$\{{[^}}]*\b{re.escape(key)}\b", OmegaConf.to_yaml(data._get_root())):
            raise ConfigError(
                f"data.{key}: no such setting of a loader{nearest(key, known)}; "
                f"there are: {listed(known)}"
            )
        del options[key]
    return options


def _moved(source: InMemory, device: torch.device, path: str) -> InMemory:
    """A data set in memory with its data on a device, for good."""
    if not isinstance(source, Movable):
        raise ConfigError(
            f"data.device_resident=true: {type(source).__name__} ({path}) has no method "
            "to(device); give it one, or set it to false"
        )
    try:
        moved: InMemory = source.to(device)
    except torch.cuda.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        raise ConfigError(
            f"data.device_resident=true: {path} does not fit on {device} ({reason}); use false"
        ) from None
    return moved


def _function(data: DictConfig, key: str, arguments: str) -> Any:
    """What the loader calls with these arguments; None if the config has no such function."""
    node, path = data.get(key), f"data.{key}"
    if node is None:
        return None
    if not isinstance(node, DictConfig):
        raise ConfigError(
            f"{path}={node}: use a mapping, such as {{_target_: my_module.{key}, _partial_: true}}"
        )
    require_target(node, path)
    target = f"{path}._target_={node._target_}"
    advice = f"a function that is called with {arguments} needs _partial_: true beside it"
    try:
        function = instantiate(node, path)
    except ConfigError as error:
        if node.get("_partial_") or not isinstance(error.__cause__, TypeError):
            raise
        raise ConfigError(f"{target}: {error.__cause__}; {advice}") from error
    if not callable(function):
        raise ConfigError(f"{target}: makes {kind_of(function)}, which cannot be called; {advice}")
    return partial(called, path, function)


def _refuse_memory_options(options: dict[str, Any], source: Any, path: str) -> None:
    for key in _MEMORY_OPTIONS:
        if options.get(key):
            raise ConfigError(
                f"data.{key}: needs data that makes whole batches by index, and "
                f"{type(source).__name__} ({path}) has no get_batch(indices, generator)"
            )


def _refuse_unused_collate(sources: Mapping[Mode, Any]) -> None:
    """A function for lists of samples where no data gives any; other splits may give some."""
    if any(is_sample_dataset(s) and not isinstance(s, InMemory) for s in sources.values()):
        return
    train = sources["train"]
    does = "makes whole batches by get_batch" if isinstance(train, InMemory) else "gives batches"
    raise ConfigError(
        "data.collate_fn: is called with lists of samples, and data.train "
        f"({type(train).__name__}) {does} itself: collate there and leave data.collate_fn out, or "
        "let it give single samples"
    )


def _stream(source: Any, endless: bool, limit: int | None, training: bool) -> BatchStream:
    stream = BatchStream(source, endless, limit)
    if training:
        _tell_doubts(stream.doubts())
        _tell_doubts(doubts_about_shares(source, dist.world_size()))
    return stream


def _tell_of_shared_generators(train: Loader | None, val: Loader | None) -> None:
    """A validation in the middle of a pass moves what is drawn for that pass, or for the next.

    A run by epochs validates between two of them.
    """
    if isinstance(train, BatchStream) and isinstance(val, BatchStream) and train.endless:
        theirs = generators_of(val.batches)
        if any(one is other for one in generators_of(train.batches) for other in theirs):
            _tell_doubts(
                "draws from the same generator as data.val: a run by iterations that is resumed "
                "is exact only if each has a generator of its own"
            )


def _tell_doubts(doubts: str) -> None:
    if doubts and dist.rank() == 0:
        logging.getLogger("hookexp").warning("data.train: %s", doubts)


def _worker_options(options: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The arguments of torch's DataLoader among the loader's settings."""
    ours = (*_SAMPLER_OPTIONS, *_MEMORY_OPTIONS)
    chosen = {k: v for k, v in options.items() if k not in ours and v is not None}
    if chosen.get("pin_memory") == "auto":
        chosen["pin_memory"] = device.type == "cuda"
    if chosen.get("num_workers", 0) == 0:
        chosen.pop("persistent_workers", None)
        chosen.pop("prefetch_factor", None)
    return chosen


def plain(cfg: DictConfig, resolve: bool = False) -> dict[str, Any]:
    """A config as plain dicts and lists, with interpolations as written or filled in."""
    content = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}

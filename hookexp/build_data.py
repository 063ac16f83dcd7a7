"""From the config group `data` to loaders: samples by index, from memory, or ready batches."""

from __future__ import annotations

from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch.utils.data import DataLoader, IterableDataset

from hookexp import dist
from hookexp.compose.instantiate import instantiate
from hookexp.data.loader import (
    BatchStream,
    InMemory,
    Loader,
    MemoryLoader,
    WorkerLoader,
    is_sample_dataset,
)
from hookexp.data.sampler import BatchSampler
from hookexp.errors import ConfigError
from hookexp.hook import Mode
from hookexp.settings import TrainerSettings

_DATA_SOURCES = ("train", "val", "test")
_SAMPLER_OPTIONS = ("batch_size", "eval_batch_size", "shuffle", "drop_last")


def build_loader(
    data: DictConfig, split: Mode, settings: TrainerSettings, device: torch.device, seed: int
) -> Loader | None:
    """The loader of one split; None if the config has no data for it."""
    if data.get(split) is None:
        return None
    path = f"data.{split}"
    whole_number(data, "batch_size", 1, "data.")
    whole_number(data, "num_workers", 0, "data.")
    source = instantiate(data[split], path)
    training = split == "train"
    endless = training and not settings.by_epoch
    options = {k: v for k, v in plain(data, resolve=True).items() if k not in _DATA_SOURCES}
    batch_size = options["batch_size"]
    if not training and options.get("eval_batch_size") is not None:
        batch_size = options["eval_batch_size"]
    if not is_sample_dataset(source):
        return BatchStream(source, endless, settings.limit_of(split))
    worker_options = _worker_options(options, device)
    if isinstance(source, IterableDataset):
        loader = DataLoader(source, batch_size=batch_size, **worker_options)
        return BatchStream(loader, endless, settings.limit_of(split))
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
    )
    if len(sampler) == 0:
        raise ConfigError(
            f"{path}: {len(source)} samples make no batch of {batch_size} with "
            "data.drop_last=true; use a smaller data.batch_size"
        )
    if isinstance(source, InMemory):
        return MemoryLoader(source, sampler)
    return WorkerLoader(source, sampler, **worker_options)


def _worker_options(options: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """The arguments of torch's DataLoader among the loader's settings."""
    chosen = {k: v for k, v in options.items() if k not in _SAMPLER_OPTIONS and v is not None}
    if chosen.get("pin_memory") == "auto":
        chosen["pin_memory"] = device.type == "cuda"
    if chosen.get("num_workers", 0) == 0:
        chosen.pop("persistent_workers", None)
        chosen.pop("prefetch_factor", None)
    return chosen


def whole_number(cfg: DictConfig, key: str, least: int, prefix: str = "") -> int:
    """A whole number of the config.

    Raises:
        ConfigError: for anything else, or less than `least`.
    """
    value = cfg.get(key, least)
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ConfigError(f"{prefix}{key}={value}: use a whole number, {least} or more")
    return value


def plain(cfg: DictConfig, resolve: bool = False) -> dict[str, Any]:
    """A config as plain dicts and lists, with interpolations as written or filled in."""
    content = OmegaConf.to_container(cfg, resolve=resolve)
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}

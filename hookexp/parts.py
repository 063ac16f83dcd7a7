"""`Parts`: what a run is made of, finished. `build.py` fills it in, the runner reads it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

if TYPE_CHECKING:
    from hookexp.checkpoint.loading import Start
    from hookexp.data.loader import Loader
    from hookexp.hook import Batch
    from hookexp.hook_list import HookList
    from hookexp.optim.param_schedulers import ParamSchedulers
    from hookexp.optim.wrapper import OptimWrapper
    from hookexp.settings import TrainerSettings
    from hookexp.sink_list import SinkList
    from hookexp.summary import Objective
    from hookexp.task import Task

_Step = Callable[[nn.Module, Any], dict[str, Any]]


@dataclass
class Parts:
    """Finished objects; nothing here is built when it is read."""

    settings: TrainerSettings
    work_dir: Path
    experiment_name: str
    seed: int
    device: torch.device
    hooks: HookList
    sinks: SinkList
    task: Task
    model: nn.Module
    optim_wrapper: OptimWrapper
    param_schedulers: ParamSchedulers
    autocast: AbstractContextManager[Any]
    place: Callable[[Batch], Batch]
    prefetch: Callable[[Iterator[Batch]], Iterator[Batch]]
    train_step: _Step
    train_loader: Loader | None = None
    val_loader: Loader | None = None
    test_loader: Loader | None = None
    objective: Objective | None = None
    resume: str | None = None
    load_from: str | None = None
    load_from_trusted: bool = False
    resume_ignore: tuple[str, ...] = ()
    start: Start | None = None
    """What `resume` or `load_from` name, where that was read already."""
    cfg: Mapping[str, Any] = field(default_factory=dict)
    words_of_a_training: str = ""
    """What to type for the same run in `mode=train`."""
    words_of_an_evaluation: str = "mode=test"
    """What to type beside `load_from=...` for the same model and data; empty if there is none."""

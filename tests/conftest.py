"""`make_runner`: a real run of small parts, put together without a config."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from fakes import TinyData, TinyModel, TinyTask
from torch import nn

from hookexp.data.loader import MemoryLoader
from hookexp.data.sampler import BatchSampler
from hookexp.device import autocast, batch_placer
from hookexp.hook_list import HookList
from hookexp.hooks.optimizer import OptimizerHook
from hookexp.hooks.sampler_seed import DistSamplerSeedHook
from hookexp.optim.param_schedulers import ParamSchedulers
from hookexp.optim.wrapper import OptimWrapper
from hookexp.parts import Parts
from hookexp.runner import Runner
from hookexp.seed import seed_everything
from hookexp.settings import TrainerSettings
from hookexp.sink_list import SinkList
from hookexp.summary import choose_objective
from hookexp.task import Task

# Small tensors on several threads spend their time waiting for each other.
torch.set_num_threads(1)


def pytest_configure(config: pytest.Config) -> None:
    """Without `-m gpu` no test sees a GPU.

    Where there is one, torch's autograd has threads of its own from the first backward pass on, and
    no process that has them can be forked, as many tests do.
    """
    if "gpu" not in config.option.markexpr.replace("not gpu", ""):
        os.environ["CUDA_VISIBLE_DEVICES"] = ""


@pytest.fixture(scope="session", autouse=True)
def signals_as_in_a_terminal() -> None:
    """Under nohup, or in the background of a shell, they are ignored, also by what tests start."""
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def make_runner(tmp_path: Path) -> Callable[..., Runner]:
    def make(
        hooks: Mapping[str, Any] | None = None,
        *,
        work_dir: Path | None = None,
        train_size: int = 24,
        val_size: int = 8,
        batch_size: int = 8,
        model: nn.Module | None = None,
        task: Task | None = None,
        data: Any = None,
        lr: float = 0.1,
        param_schedulers: Mapping[str, Any] | None = None,
        sinks: Mapping[str, Any] | None = None,
        with_optimizer: bool = True,
        resume: str | None = None,
        load_from: str | None = None,
        load_from_trusted: bool = False,
        resume_ignore: tuple[str, ...] = (),
        seed: int = 0,
        **settings: Any,
    ) -> Runner:
        # What a hook costs in a run of a few milliseconds is chance; see test_host_time.
        trainer = TrainerSettings(**{"device": "cpu", "hook_budget": None, **settings})
        folder = work_dir or tmp_path / "run"
        folder.mkdir(parents=True, exist_ok=True)
        hook_list = HookList()
        if with_optimizer:
            hook_list.register(OptimizerHook(), "optimizer")
            hook_list.register(DistSamplerSeedHook(), "sampler_seed")
        for name, hook in (hooks or {}).items():
            hook_list.register(hook, name)
        hook_list.check_method_names()
        seed_everything(seed)
        net = model or TinyModel()
        optimizer = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9)
        task = task or TinyTask()

        def loader(size: int, training: bool) -> MemoryLoader:
            source = data if training and data is not None else TinyData(size)
            sampler = BatchSampler(
                len(source),
                batch_size,
                seed=seed,
                shuffle=training,
                endless=training and not trainer.by_epoch,
            )
            return MemoryLoader(source, sampler)

        scaler = torch.amp.GradScaler("cpu", enabled=trainer.precision == "fp16")
        cpu = torch.device("cpu")
        return Runner(
            Parts(
                settings=trainer,
                work_dir=folder,
                experiment_name="tiny",
                seed=seed,
                device=cpu,
                hooks=hook_list,
                sinks=SinkList(sinks or {}),
                task=task,
                model=net,
                optim_wrapper=OptimWrapper({"default": optimizer}, scaler),
                param_schedulers=ParamSchedulers(param_schedulers or {}),
                autocast=autocast(cpu, trainer.precision),
                place=batch_placer(cpu, trainer.channels_last),
                prefetch=iter,
                train_step=task.train_step,
                train_loader=loader(train_size, training=True),
                val_loader=loader(val_size, training=False) if val_size else None,
                test_loader=loader(val_size, training=False) if val_size else None,
                objective=choose_objective(trainer.objective, task.metric_names, {}),
                resume=resume,
                load_from=load_from,
                load_from_trusted=load_from_trusted,
                resume_ignore=resume_ignore,
            )
        )

    return make


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--golden-update", action="store_true", help="write the golden files anew")

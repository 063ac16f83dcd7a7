"""hookexp: training runs composed of hooks.

The names below are imported on first use (PEP 562), so that the command line answers `--help` and
`--cfg job` without importing torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hookexp.data.endless import EndlessBatches
    from hookexp.errors import ConfigError
    from hookexp.hook import MOUNT_POINTS, Hook, Priority
    from hookexp.hook_list import HookList
    from hookexp.message_hub import MessageHub
    from hookexp.optim.param_scheduler import ParamScheduler
    from hookexp.runner import Runner
    from hookexp.sink import LogPoint, Sink
    from hookexp.task import Task
    from hookexp.tasks.supervised import SupervisedTask

__version__ = "0.1.0"

__all__ = [
    "MOUNT_POINTS",
    "ConfigError",
    "EndlessBatches",
    "Hook",
    "HookList",
    "LogPoint",
    "MessageHub",
    "ParamScheduler",
    "Priority",
    "Runner",
    "Sink",
    "SupervisedTask",
    "Task",
]

_MODULES = {
    "MOUNT_POINTS": "hook",
    "ConfigError": "errors",
    "EndlessBatches": "data.endless",
    "Hook": "hook",
    "HookList": "hook_list",
    "LogPoint": "sink",
    "MessageHub": "message_hub",
    "ParamScheduler": "optim.param_scheduler",
    "Priority": "hook",
    "Runner": "runner",
    "Sink": "sink",
    "SupervisedTask": "tasks.supervised",
    "Task": "task",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'hookexp' has no attribute {name!r}")
    return getattr(import_module(f"hookexp.{_MODULES[name]}"), name)


def __dir__() -> list[str]:
    return __all__

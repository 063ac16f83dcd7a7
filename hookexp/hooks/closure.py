"""`ClosureHook`: one function as a hook, without a class."""

from __future__ import annotations

import difflib
import pkgutil
from collections.abc import Callable
from typing import Any

from hookexp.errors import kind_of
from hookexp.hook import FAN_INS, MOUNT_POINTS, Hook, Priority


class ClosureHook(Hook):
    """Calls a function at one mount point, with what the mount point gives.

        # my_module.py
        def say_hello(runner):
            runner.logger.info("hello from epoch %d", runner.epoch + 1)

        python -m hookexp hooks=+closure hooks.closure.fn=my_module.say_hello
            hooks.closure.fn_name=before_train_epoch

    A second one needs a name of its own:
    `+hooks.second._target_=hookexp.hooks.closure.ClosureHook +hooks.second.fn_name=...`

    Args:
        fn_name: a mount point, or a fan-in such as `_after_iter`, which is called with a `mode`.
        fn: the function, or its dotted path; it takes `runner` and, of what the mount point gives,
            those arguments that it names (`batch_idx`, `data_batch`, `outputs`, `metrics`, ...).

    Raises:
        ValueError: if there is no such mount point, or `fn` cannot be imported or called.
    """

    priority = Priority.NORMAL

    def __init__(self, fn_name: str, fn: str | Callable[..., Any]) -> None:
        if fn_name not in MOUNT_POINTS and fn_name not in FAN_INS:
            raise ValueError(_no_such_mount_point(fn_name))
        self.fn_name = fn_name
        self.fn = _imported(fn) if isinstance(fn, str) else fn
        if not callable(self.fn):
            raise ValueError(f"fn={fn}: is {kind_of(self.fn)}, a function is needed")
        setattr(self, fn_name, self.fn)

    def get_triggered_stages(self) -> list[str]:
        return list(FAN_INS.get(self.fn_name, (self.fn_name,)))


def _no_such_mount_point(name: str) -> str:
    names = [*MOUNT_POINTS, *FAN_INS]
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.0)[0]
    return (
        f"fn_name={name}: is not a mount point; did you mean {nearest}? There are: "
        f"{', '.join(names)}"
    )


def _imported(path: str) -> Any:
    try:
        return pkgutil.resolve_name(path)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"fn={path}: cannot be imported ({error}); write MODULE.FUNCTION of a module in the "
            "current folder, in the folder of --config-dir, or installed"
        ) from error

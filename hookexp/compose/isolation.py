"""Jobs of one sweep share a process: what one of them changes is put back before the next."""

from __future__ import annotations

import gc
import logging
import os
import random
import signal
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

_LOGGERS = ("", "hookexp")
_SIGNALS = ("SIGINT", "SIGTERM", "SIGUSR1", "SIGHUP")
_Undo = Callable[[], object]


@contextmanager
def restored_process_state() -> Iterator[None]:
    """Put back, on leaving, what a run may change in its process.

    Random number generators (Python, NumPy, torch), torch's flags, log handlers, signal handlers,
    warning filters, environment variables and the import path.
    """
    undo = [*_python_state(), *_numpy_state(), *_torch_state()]
    try:
        yield
    finally:
        for put_back in undo:
            put_back()
        _free_memory()


def _python_state() -> Iterator[_Undo]:
    generator = random.getstate()
    yield lambda: random.setstate(generator)
    path = list(sys.path)
    yield lambda: sys.path.__setitem__(slice(None), path)
    environment = dict(os.environ)
    yield lambda: _replace_environment(environment)
    yield _warnings_state()
    for name in _LOGGERS:
        yield _logger_state(logging.getLogger(name))
    for name in _SIGNALS:
        yield _signal_state(name)


def _warnings_state() -> _Undo:
    catching = warnings.catch_warnings()
    catching.__enter__()
    return lambda: catching.__exit__(None, None, None)


def _replace_environment(environment: dict[str, str]) -> None:
    for name in set(os.environ) - set(environment):
        del os.environ[name]
    os.environ.update(environment)


def _logger_state(logger: logging.Logger) -> _Undo:
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate

    def put_back() -> None:
        for handler in logger.handlers:
            if handler not in handlers:
                handler.close()
        logger.handlers[:] = handlers
        logger.setLevel(level)
        logger.propagate = propagate

    return put_back


def _signal_state(name: str) -> _Undo:
    number = getattr(signal, name, None)
    handler = None if number is None else signal.getsignal(number)

    def put_back() -> None:
        if number is not None and handler is not None and signal.getsignal(number) != handler:
            signal.signal(number, handler)

    return put_back


def _numpy_state() -> Iterator[_Undo]:
    import numpy as np

    generator = np.random.get_state()
    yield lambda: np.random.set_state(generator)


def _torch_state() -> Iterator[_Undo]:
    import torch

    cpu = torch.get_rng_state()
    yield lambda: torch.set_rng_state(cpu)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        current = torch.cuda.current_device()
        yield lambda: torch.cuda.set_device(current)
        gpus = torch.cuda.get_rng_state_all()
        yield lambda: torch.cuda.set_rng_state_all(gpus)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()

    def put_determinism_back() -> None:
        # Torch (2.13) imports its compiler here, for which no error message should wait.
        if torch.are_deterministic_algorithms_enabled() != deterministic:
            torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)

    yield put_determinism_back
    precision = torch.get_float32_matmul_precision()
    yield lambda: torch.set_float32_matmul_precision(precision)
    threads = torch.get_num_threads()
    yield lambda: torch.set_num_threads(threads)
    dtype = torch.get_default_dtype()
    yield lambda: torch.set_default_dtype(dtype)
    anomaly = torch.is_anomaly_enabled()
    yield lambda: torch.autograd.set_detect_anomaly(anomaly)
    grad = torch.is_grad_enabled()
    yield lambda: torch.set_grad_enabled(grad)
    for flag in ("benchmark", "deterministic", "enabled", "allow_tf32"):
        yield _attribute_state(torch.backends.cudnn, flag)


def _attribute_state(owner: Any, name: str) -> _Undo:
    value = getattr(owner, name)
    return lambda: setattr(owner, name, value)


def _free_memory() -> None:
    """Let the next job begin with an empty device and without the last one's compiled code."""
    gc.unfreeze()
    gc.collect()
    torch: Any = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    forget_compiled_code()


def forget_compiled_code() -> None:
    """What a run compiles depends on the shapes that its process has seen before."""
    dynamo: Any = sys.modules.get("torch._dynamo")
    # Where there is a GPU torch (2.13) imports all of its compiler for this.
    if dynamo is not None and dynamo.convert_frame.FRAME_COUNTER > 0:
        dynamo.reset()

"""Activation checkpointing: some modules compute their activations again instead of keeping them.

python -m hookexp model=gpt trainer.activation_checkpointing=[blocks.*]

Less memory for about a third more computation (Chen et al. 2016, arXiv:1604.06174). Loss and
gradients are the same bit for bit: the second pass draws the same random numbers, and batch norm
counts a batch once.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from fnmatch import fnmatchcase
from functools import partial
from types import MethodType
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase
from torch.utils.checkpoint import checkpoint

from hookexp.errors import ConfigError

_PATH = "trainer.activation_checkpointing"


def recompute_in_backward(model: nn.Module, patterns: Sequence[str]) -> None:
    """Let the modules of these names keep their inputs alone for the backward pass.

    Modules stay where and what they are, so names in a `state_dict` do not change.

    Args:
        patterns: names as `model.named_modules()` has them; `*` and `?` stand for characters of
            one part of a name: `blocks.*` selects `blocks.0`, not `blocks.0.mlp`.

    Raises:
        ConfigError: for a pattern that is no module's, with the nearest names.
    """
    named = {name: module for name, module in model.named_modules() if name}
    for pattern in patterns:
        chosen = [name for name in named if _matches(name, pattern)]
        if not chosen:
            near = difflib.get_close_matches(pattern, named, n=5, cutoff=0.0)
            raise ConfigError(
                f"{_PATH}: {pattern!r} is the name of no module of the model; "
                f"the nearest are: {', '.join(near) or 'none'}"
            )
        for name in chosen:
            # A method bound anew goes along with a deep copy of the module, as EMA makes one.
            named[name].forward = MethodType(_forward, named[name])


def _matches(name: str, pattern: str) -> bool:
    parts, wanted = name.split("."), pattern.split(".")
    return len(parts) == len(wanted) and all(map(fnmatchcase, parts, wanted))


def _forward(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
    forward = partial(type(module).forward, module)
    if not torch.is_grad_enabled():
        return forward(*args, **kwargs)
    if torch.compiler.is_compiling():
        # The compiler takes side effects out of what it computes again.
        return checkpoint(forward, *args, use_reentrant=False, **kwargs)
    return checkpoint(
        forward, *args, use_reentrant=False, context_fn=partial(_contexts, module), **kwargs
    )


def _contexts(module: nn.Module) -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What the first and the second pass run in."""
    return nullcontext(), _batch_norm_frozen(module)


@contextmanager
def _batch_norm_frozen(module: nn.Module) -> Iterator[None]:
    """Batch norm normalises by the batch as before and leaves its running statistics alone."""
    norms = [m for m in module.modules() if isinstance(m, _NormBase)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm, (_, num_batches) in zip(norms, before, strict=True):
        norm.momentum = 0.0
        norm.num_batches_tracked = None if num_batches is None else num_batches.clone()
    try:
        yield
    finally:
        for norm, (momentum, num_batches) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, num_batches

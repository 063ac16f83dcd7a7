"""Parameter groups that an optimizer has together with one that it wraps."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from torch.optim import Optimizer


@contextmanager
def shared_groups(optimizer: Optimizer) -> Iterator[None]:
    """Have them together after a load too, in which torch gives an optimizer groups of its own.

    `self.inner.param_groups is self.param_groups` is how wrappers such as lookahead pass on what a
    schedule sets.
    """
    groups = optimizer.param_groups
    others = [one for one in vars(optimizer).values() if isinstance(one, Optimizer)]
    wrapped = [one for one in others if one.param_groups is groups]
    yield
    for one in wrapped:
        one.param_groups = optimizer.param_groups

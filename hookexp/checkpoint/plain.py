"""Checkpoints hold tensors and plain types only, so that loading one never runs code."""

from __future__ import annotations

import re
from typing import Any

import torch
from torch import Tensor

from hookexp.errors import ConfigError

_LEAVES = frozenset(
    (type(None), bool, int, float, str, bytes, Tensor, torch.Size, torch.device, torch.dtype)
)


_DEEPEST = 240
"""Levels that Python surely goes down when it copies and writes them."""


def ensure_plain(value: Any, path: str, levels: int = 0) -> None:
    """Refuse a value that `torch.load(weights_only=True)` would refuse, while it can be mended.

    Args:
        path: where the value stands, such as `hooks.ema.steps`; it is named in the error.
        levels: how deep that is in what is saved.

    Raises:
        ConfigError: naming the path, the type, and what to store instead.
    """
    kind = type(value)
    if levels > _DEEPEST:
        start = ".".join(re.split(r"[.[]", path)[:3])
        raise ConfigError(
            f"checkpoint: {start} is nested more than {_DEEPEST} levels deep, or holds itself; "
            "store it flat, such as a list of nodes that name each other by number"
        )
    if issubclass(kind, dict) and (kind is dict or kind.__name__ == "OrderedDict"):
        for key, item in value.items():
            if not isinstance(key, (str, int, float, bool, tuple)):
                raise ConfigError(f"checkpoint: {path} has a key of type {type(key).__name__}")
            if type(item) not in _LEAVES:  # Most are, and need no path.
                ensure_plain(item, f"{path}.{key}", levels + 1)
        # torch saves the attributes of an OrderedDict too: of a state_dict, modules' versions.
        for key, item in getattr(value, "__dict__", {}).items():
            ensure_plain(item, f"{path}.{key}", levels + 1)
    elif kind in (list, tuple, set):
        if _LEAVES.issuperset(map(type, value)):
            return  # The state of a generator alone is 625 numbers.
        for index, item in enumerate(value):
            ensure_plain(item, f"{path}[{index}]", levels + 1)
    elif kind not in _LEAVES and not isinstance(value, Tensor):
        raise ConfigError(
            f"checkpoint: {path} is a {kind.__module__}.{kind.__name__}, which cannot be loaded "
            f"safely; store numbers, strings, lists, dicts or tensors instead "
            f"(for a NumPy value: .item(), .tolist() or torch.from_numpy)"
        )

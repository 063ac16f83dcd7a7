"""What could not be loaded again is refused when it is saved, with its place."""

from __future__ import annotations

from collections import OrderedDict, defaultdict, deque
from pathlib import Path

import numpy as np
import pytest
import torch

from hookexp.checkpoint.plain import ensure_plain
from hookexp.errors import ConfigError


def test_tensors_and_plain_types_pass():
    ensure_plain(
        {"a": [1, 2.5, "x", None, True, (1,)], 3: torch.zeros(2), "o": OrderedDict(k=b"b")}, "meta"
    )


@pytest.mark.parametrize(
    "value", [np.float32(1), np.zeros(2), deque([1]), defaultdict(int), Path("x"), object()]
)
def test_anything_else_is_named(value):
    with pytest.raises(ConfigError, match=r"hooks\.ema\.steps\[1\] is a .*cannot be loaded safely"):
        ensure_plain({"ema": {"steps": [0, value]}}, "hooks")


def nested(levels, kind):
    value = torch.zeros(1)
    for _ in range(levels):
        value = kind(value)
    return value


@pytest.mark.parametrize("kind", [lambda v: [v], lambda v: {"a": v}, lambda v: OrderedDict(a=v)])
def test_what_is_nested_too_deep_is_named(kind):
    ensure_plain({"ema": {"steps": nested(200, kind)}}, "hooks")
    with pytest.raises(ConfigError) as caught:
        ensure_plain({"ema": {"steps": nested(1000, kind)}}, "hooks")
    assert str(caught.value) == (
        "checkpoint: hooks.ema.steps is nested more than 240 levels deep, or holds itself; store "
        "it flat, such as a list of nodes that name each other by number"
    )


def test_what_a_module_notes_beside_its_weights_is_looked_at():
    weights = torch.nn.Linear(1, 1).state_dict()
    ensure_plain(weights, "state_dict")
    weights._metadata[""]["by"] = Path("x")
    with pytest.raises(ConfigError, match=r"state_dict\._metadata\.\.by is a "):
        ensure_plain(weights, "state_dict")

"""The states of random number generators, in plain types."""

from __future__ import annotations

import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch


def kind_of(generator: Any) -> str:
    """What has to be the same for one to take the state of another."""
    if isinstance(generator, np.random.Generator):
        return type(generator.bit_generator).__name__
    device = generator.device.type if isinstance(generator, torch.Generator) else "cpu"
    return f"{type(generator).__name__} {device}"


def state_of(generator: Any) -> Any:
    """As tensors and plain types."""
    if isinstance(generator, torch.Generator):
        return generator.get_state()
    if isinstance(generator, random.Random):
        return generator.getstate()
    if isinstance(generator, np.random.Generator):
        return _plain(generator.bit_generator.state)
    return _plain(generator.get_state(legacy=False))


def set_state(generator: Any, state: Any) -> None:
    """Of one of the same kind."""
    if isinstance(generator, random.Random):
        generator.setstate(state)
    elif isinstance(generator, np.random.Generator):
        generator.bit_generator.state = state
    else:
        generator.set_state(state)


def _plain(state: Any) -> Any:
    """With lists of numbers for arrays, which NumPy takes back."""
    if isinstance(state, Mapping):
        return {key: _plain(value) for key, value in state.items()}
    return state.tolist() if isinstance(state, (np.ndarray, np.generic)) else state

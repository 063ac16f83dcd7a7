"""`first_difference`: where two nested states differ, bit for bit."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor


def first_difference(one: Any, two: Any, path: str = "") -> str | None:
    """Where two nested states differ first, in words; None if they are equal bit for bit."""
    if isinstance(one, Tensor) and isinstance(two, Tensor):
        one, two = (t.to_dense() if t.is_sparse else t for t in (one, two))
        if (one.shape, one.dtype) != (two.shape, two.dtype):
            return f"{path}: is {_kind(two)}, not {_kind(one)}"
        if torch.equal(_bits(one), _bits(two)):
            return None
        wide = torch.complex128 if one.is_complex() else torch.float64
        gap = (one.to(wide) - two.to(wide)).abs().max().item()
        return f"{path}: differs by up to {gap:.3g}"
    if isinstance(one, Mapping) and isinstance(two, Mapping):
        for key in [*one, *(k for k in two if k not in one)]:
            if key not in one or key not in two:
                return f"{path}.{key}: is in one of the two alone".lstrip(".")
            found = first_difference(one[key], two[key], f"{path}.{key}".lstrip("."))
            if found is not None:
                return found
        return None
    if isinstance(one, (list, tuple)) and isinstance(two, (list, tuple)):
        if len(one) != len(two):
            return f"{path}: has {len(two)} items, not {len(one)}"
        pairs = enumerate(zip(one, two, strict=True))
        found_in = (first_difference(a, b, f"{path}[{n}]") for n, (a, b) in pairs)
        return next((found for found in found_in if found is not None), None)
    if isinstance(one, np.ndarray) and isinstance(two, np.ndarray):
        return first_difference(one.tolist(), two.tolist(), path)
    if one == two or (one != one and two != two):
        return None
    return f"{path}: is {two!r}, not {one!r}"


def _kind(tensor: Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)}"


def _bits(tensor: Tensor) -> Tensor:
    """The bytes, so that a NaN equals itself and zero does not equal minus zero."""
    return tensor.resolve_conj().resolve_neg().contiguous().view(-1).view(torch.uint8)

"""The weights of a checkpoint against those of a model: they are loaded if all of them fit."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from hookexp import dist
from hookexp.errors import ConfigError, kind_of


def shapes_of(model: nn.Module) -> dict[str, str]:
    """The names and shapes of a model's weights, which those of a checkpoint have to have."""
    return _shapes(dist.unwrap(model).state_dict())


def doubts_about_weights(checkpoint: Mapping[str, Any], shapes: Mapping[str, str]) -> str:
    """Why the model of a resumed run would have no place for the weights; empty if it has."""
    differences = _differences(_shapes(checkpoint["state_dict"]), shapes)
    if not differences:
        return ""
    return (
        "the model has changed since the run began, and this run cannot be resumed from the "
        "checkpoints it writes now:\n"
        + "\n".join(f"  {line}" for line in differences)
        + "\nRegister buffers in the constructor, as tensors of the shape that they will have, "
        "or with persistent=False if they need not be saved; hooks add weights in before_run."
    )


def refuse_without_weights(checkpoint: Mapping[str, Any], path: Path) -> None:
    """Refuse a file that has no weights where a checkpoint of ours has them.

    Raises:
        ConfigError: listing what there is.
    """
    if not isinstance(checkpoint.get("state_dict"), Mapping):
        raise ConfigError(
            f"checkpoint {path}: has no 'state_dict'; it has: {', '.join(map(str, checkpoint))}"
        )


def refuse_other_model(model: nn.Module, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Compare names and shapes of a checkpoint's weights with those of the model.

    Raises:
        ConfigError: if they differ; it lists how.
    """
    refuse_without_weights(checkpoint, path)
    differences = _differences(_shapes(checkpoint["state_dict"]), shapes_of(model))
    if differences:
        raise ConfigError(
            f"checkpoint {path} is of another model; nothing was loaded:\n"
            + "\n".join(f"  {line}" for line in differences)
            + "\nSet the model group as it was when the checkpoint was written."
        )


def load_weights(model: nn.Module, checkpoint: Mapping[str, Any], path: Path) -> None:
    """Load `state_dict` into the model; if it is of another model, leave the model as it is."""
    refuse_other_model(model, checkpoint, path)
    dist.unwrap(model).load_state_dict(checkpoint["state_dict"])


def _differences(given: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    lines = [f"only in the model: {name} {wanted[name]}" for name in wanted if name not in given]
    lines += [
        f"only in the checkpoint: {name} {given[name]}" for name in given if name not in wanted
    ]
    lines += [
        f"{name}: {given[name]} in the checkpoint, {wanted[name]} in the model"
        for name in wanted
        if name in given and given[name] != wanted[name]
    ]
    shown = 12
    if len(lines) > shown:
        lines[shown:] = [f"... and {len(lines) - shown} more"]
    return lines


def _shapes(weights: Mapping[str, Any]) -> dict[str, str]:
    return {name: _shape(value) for name, value in weights.items()}


def _shape(value: Any) -> str:
    """Of a weight; what could not be copied from one to the other reads differently."""
    if not isinstance(value, Tensor):
        return kind_of(value)
    layout = "" if value.layout is torch.strided and not value.is_quantized else "packed "
    return f"{layout}({', '.join(map(str, value.shape))})"

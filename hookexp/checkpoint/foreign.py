"""Weights that another program wrote: found in their file, and their names fitted to the model.

    {"layer.weight": tensor, ...}                     torch.save(model.state_dict())
    {"state_dict": {...}, ...}                        MMEngine, Lightning, timm
    {"model": {...}, ...}, {"model_state_dict": {...}, ...}
    a module                                          torch.save(model), with load_from_trusted=true
    *.safetensors

Names may carry what wrappers put before them: `module.` (DistributedDataParallel), `_orig_mod.`
(torch.compile), `model.` (a Lightning module's attribute).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from hookexp.errors import ConfigError, kind_of

SAFETENSORS = ".safetensors"
_SECTIONS = ("state_dict", "model_state_dict", "model")
_PREFIXES = ("module.", "_orig_mod.", "model.")
_COMPILED = "_orig_mod"


def read_safetensors(path: Path) -> dict[str, Any]:
    """The weights of a safetensors file, which can hold nothing else.

    Raises:
        ConfigError: if it is torn or none.
    """
    try:
        return {"state_dict": load_file(path)}
    except FileNotFoundError:
        raise ConfigError(f"checkpoint {path}: there is no such file") from None
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"checkpoint {path}: cannot be read ({error}); it is torn or no safetensors file"
        ) from error


def with_weights(content: Any, path: Path) -> dict[str, Any]:
    """What was read, as a dict with the weights under `state_dict`.

    Raises:
        ConfigError: if there are none; it lists what there is.
    """
    if isinstance(content, nn.Module):
        return {"state_dict": content.state_dict()}
    if not isinstance(content, Mapping):
        raise ConfigError(f"checkpoint {path}: holds {kind_of(content)}, not a dict")
    for key in _SECTIONS:
        section = content.get(key)
        if isinstance(section, nn.Module):
            section = section.state_dict()
        if isinstance(section, Mapping):
            return {**content, "state_dict": section}
    if content and all(isinstance(value, Tensor) for value in content.values()):
        return {"state_dict": content}
    raise ConfigError(
        f"checkpoint {path}: has no weights; they would be the whole file or stand under "
        f"{', '.join(_SECTIONS)}; it has: {', '.join(map(str, content)) or 'nothing'}"
    )


def fitted(weights: Mapping[str, Any], wanted: Collection[str]) -> dict[str, Any]:
    """The weights under the model's names, where wrappers' prefixes are all that differs.

    Beside them stays what torch's `load_state_dict` looks for: the versions of the modules.
    """
    names = {name: name for name in weights}
    while any(name not in wanted for name in names.values()):
        fewer = {name: _without_prefix(now, wanted) for name, now in names.items()}
        if fewer == names or len(set(fewer.values())) < len(fewer):
            break
        names = fewer
    found = OrderedDict((names[name], value) for name, value in weights.items())
    vars(found)["_metadata"] = _of_modules(getattr(weights, "_metadata", {}), names)
    return found


def _of_modules(metadata: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    """What stands under the names of modules, for weights whose names change as given."""
    found = {}
    for old, new in names.items():
        while new:
            old, new = _module_of(old), _module_of(new)
            if old in metadata:
                found[new] = metadata[old]
            if old.endswith(_COMPILED) and not new.endswith(_COMPILED):
                old = _module_of(old)
    return found


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _without_prefix(name: str, wanted: Collection[str]) -> str:
    if name in wanted:
        return name
    for prefix in _PREFIXES:
        if name.startswith(prefix):
            return name.removeprefix(prefix)
    # A part that was compiled by itself has it in the middle.
    return name.replace("._orig_mod.", ".")

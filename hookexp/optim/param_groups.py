"""Parameter groups by config: no decay for biases and norms, smaller steps for early layers.

    optimizer.param_groups.no_decay=true
    optimizer.param_groups.layer_decay=0.75
    'optimizer.param_groups.rules=[{params: head, lr_mult: 10}, {params: "*.bias", lr: 0.01}]'

Parameters whose settings come out equal share a group, because an optimizer's work is per group.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from hookexp.errors import ConfigError
from hookexp.numeric import is_number

_KEYS = ("no_decay", "layer_decay", "rules")
_FACTORS = {"lr_mult": "lr", "decay_mult": "weight_decay"}


def select(pattern: str, names: Iterable[str]) -> list[str]:
    """The dotted names that a pattern means: a name, a part of the model, or either with `*`.

    `inner` selects `inner.weight` as well, `*.bias` every bias, `blocks.[01]` two blocks.
    """
    return [
        name for name in names if fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*")
    ]


def select_all(patterns: Sequence[str], names: Sequence[str], path: str) -> list[str]:
    """The names that any of the patterns means, in the model's order.

    Args:
        path: where the patterns stand in the config, for the message.

    Raises:
        ConfigError: for a pattern that means nothing; it lists parts of the model.
    """
    chosen: set[str] = set()
    for pattern in patterns:
        found = select(pattern, names)
        if not found:
            parts = dict.fromkeys(name.rpartition(".")[0] or name for name in names)
            shown = ", ".join(list(parts)[:20]) + (", ..." if len(parts) > 20 else "")
            raise ConfigError(
                f"{path}: {pattern!r} is no parameter of the model and no part of it that has "
                f"any; it has: {shown}"
            )
        chosen.update(found)
    return [name for name in names if name in chosen]


def param_groups(
    model: nn.Module,
    names: Sequence[str],
    options: Mapping[str, Any],
    defaults: Mapping[str, Any],
    path: str = "optimizer",
) -> list[dict[str, Any]]:
    """Groups for an optimizer; first the one with its own lr, which is logged as `lr`.

    Args:
        model: whose parameters they are.
        names: of the parameters to put into groups, as in `model.named_parameters()`.
        options: `no_decay`: parameters of at most one dimension (biases, norms, scales) do not
            decay. `layer_decay`: the lr of each layer is that of the layer after it times this
            (Clark et al. 2020, ELECTRA, arXiv:2003.10555). `rules`: dicts of `params` (a pattern,
            see `select`), and of `lr_mult`, `decay_mult` or any setting of the optimizer; a later
            rule goes on top of an earlier one.
        defaults: the optimizer's settings in the config.
        path: of the optimizer in the config, for messages.

    Raises:
        ConfigError: for an option, a pattern or a setting that there is not.
    """
    path = f"{path}.param_groups"
    no_decay, layer_decay, rules = _checked(options, defaults, path)
    selected = [
        set(select_all([rule["params"]], names, f"{path}.rules[{index}].params"))
        for index, rule in enumerate(rules)
    ]
    layers = _layers(model)
    parameters = dict(model.named_parameters())
    groups: dict[tuple[tuple[str, Any], ...], dict[str, Any]] = {}
    for name in names:
        settings: dict[str, Any] = {}
        if no_decay and parameters[name].ndim <= 1:
            settings["weight_decay"] = 0.0
        if layer_decay is not None:
            layers_after = max(layers.values()) - _layer_of(name, layers)
            settings["lr"] = defaults["lr"] * layer_decay**layers_after
        for rule, chosen in zip(rules, selected, strict=True):
            if name in chosen:
                _apply(rule, settings, defaults)
        settings = {key: v for key, v in settings.items() if v != defaults.get(key)}
        same = tuple(sorted((key, str(v)) for key, v in settings.items()))
        groups.setdefault(same, {"params": [], **settings})["params"].append(parameters[name])
    return sorted(groups.values(), key=lambda group: ("lr" in group, len(group) > 1))


def _apply(rule: Mapping[str, Any], settings: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    for key, value in rule.items():
        if key in _FACTORS:
            setting = _FACTORS[key]
            settings[setting] = settings.get(setting, defaults[setting]) * value
        elif key != "params":
            settings[key] = value


def _checked(
    options: Mapping[str, Any], defaults: Mapping[str, Any], path: str
) -> tuple[bool, float | None, list[Mapping[str, Any]]]:
    for key in options:
        if key not in _KEYS:
            raise ConfigError(f"{path}.{key}: no such option; there are: {', '.join(_KEYS)}")
    no_decay = options.get("no_decay", False)
    if not isinstance(no_decay, bool):
        raise ConfigError(f"{path}.no_decay={no_decay}: use true or false")
    layer_decay = options.get("layer_decay")
    if layer_decay is not None:
        if not is_number(layer_decay) or not 0 < layer_decay <= 1:
            raise ConfigError(f"{path}.layer_decay={layer_decay}: use a number above 0, up to 1")
        _require_setting("lr", defaults, f"{path}.layer_decay")
    if no_decay:
        _require_setting("weight_decay", defaults, f"{path}.no_decay")
    rules = options.get("rules") or []
    if not isinstance(rules, list):
        raise ConfigError(
            f"{path}.rules={rules}: use a list of rules, such as [{{params: head, lr_mult: 10}}]"
        )
    for index, rule in enumerate(rules):
        _check_rule(rule, defaults, f"{path}.rules[{index}]")
    return no_decay, layer_decay, list(rules)


def _check_rule(rule: Any, defaults: Mapping[str, Any], path: str) -> None:
    if not isinstance(rule, Mapping) or not isinstance(rule.get("params"), str) or len(rule) < 2:
        raise ConfigError(
            f"{path}: use a pattern and what is set there, such as {{params: head, lr_mult: 10}}; "
            f"it is {rule}"
        )
    for key, value in rule.items():
        has_to_be_number = key in (*_FACTORS, *_FACTORS.values())
        if has_to_be_number and not (is_number(value) and value >= 0):
            raise ConfigError(f"{path}.{key}={value}: use a number, such as 0.1, not below 0")
        if key in _FACTORS:
            _require_setting(_FACTORS[key], defaults, f"{path}.{key}")
        elif key != "params" and key not in defaults:
            allowed = ", ".join(["params", *_FACTORS, *defaults])
            raise ConfigError(f"{path}.{key}: no such setting; there are: {allowed}")


def _require_setting(key: str, defaults: Mapping[str, Any], path: str) -> None:
    if defaults.get(key) is None:
        raise ConfigError(f"{path}: needs a number to begin with; set the optimizer's {key}")


def _layers(model: nn.Module) -> dict[str, int]:
    """The number of each layer by its name: the model's children, those of lists one by one."""
    names: list[str] = []

    def walk(module: nn.Module, prefix: str) -> None:
        for child_name, child in module.named_children():
            name = f"{prefix}{child_name}"
            if isinstance(child, (nn.ModuleList, nn.Sequential)):
                walk(child, f"{name}.")
            elif any(True for _ in child.parameters()):
                names.append(name)

    walk(model, "")
    return {name: number for number, name in enumerate(names)} or {"": 0}


def _layer_of(name: str, layers: Mapping[str, int]) -> int:
    """A parameter of the model itself, such as a position embedding, is with the first layer."""
    return next((n for layer, n in layers.items() if name.startswith(f"{layer}.")), 0)

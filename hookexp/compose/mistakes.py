"""One rule per kind of mistake: what to say in place of Hydra's message about it.

Rules run while a Hydra is initialized, so they can look up what there is.
"""

from __future__ import annotations

import glob
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import ConfigAttributeError, ConfigKeyError, OmegaConfBaseException

from hookexp.compose.named_sets import members
from hookexp.compose.origins import who_has_on
from hookexp.compose.set_edits import SETS
from hookexp.compose.sources import config_folders
from hookexp.compose.wording import listed, nearest, nearest_name, on_one_line, said


@dataclass(frozen=True)
class Case:
    """A mistake as Hydra reported it."""

    key: str
    """What the rule's pattern found in Hydra's message."""
    text: str
    chain: Sequence[BaseException]
    overrides: Sequence[str]
    """The `key=value` words of the command line."""


Rule = Callable[[Case], str]

_MAPPING_FOR_A_LIST = (
    "Cannot merge DictConfig with ListConfig",
    "Cannot merge incompatible container types",
)

_LONGEST_LIST = 100
"""Characters of names that a message may list; more hide what else it says."""


def no_such_option(group: str, option: str) -> str:
    top, _, member = group.partition("/")
    if top == "experiment" and member:
        return _in_an_experiment(member.partition("@")[0], option, "")
    there_are = options_of(group)
    if top in SETS and member:
        names = members(top)
        if member not in names:
            return _no_such_member(top, member)
    elif group in SETS:
        if option in members(group):
            return (
                f"{group}={option}: to add {option} to the default {group} write {group}=+{option}"
            )
        return (
            f"{group}={option}: there is no such set; sets are: {listed(there_are)}; to add one of "
            f"the {group} write {group}=+NAME; {_members_there_are(group, option)}"
            f"{_as_a_class(group, option)}"
        )
    if not there_are:
        groups = options_of("", ObjectType.GROUP)
        return f"{group}={option}: there is no group {group}; groups are: {listed(groups)}"
    return (
        f"{group}={option}: there is no such option; {group} has: {listed(there_are)}"
        f"{nearest(option, there_are)}{_where_there_is(f'{group}/{option}')}"
        f"{_as_a_class(group, option)}"
    )


def _no_such_member(group: str, name: str) -> str:
    others = [other for other in SETS if other != group and name in members(other)]
    if others:
        other = others[0]
        return f"{group}=+{name}: {name} is one of the {other}; write {other}=+{name}"
    own = _where_there_is(f"{group}/{name}") or _where_there_is(f"{group}/{name}/default")
    return (
        f"{group}=+{name}: there is no {_one(group)} {name!r}; "
        f"{_members_there_are(group, name)}{own}{_as_a_class(group, name)}"
    )


def _as_a_class(group: str, option: str) -> str:
    """How to use what is named as Python does, such as `model=my_module.Net`."""
    if not re.fullmatch(r"[A-Za-z_]\w*(\.(?!ya?ml$)[A-Za-z_]\w*)+", option):
        return ""
    places = {**dict.fromkeys((*SETS, "param_scheduler"), f"+{group}.NAME"), "data": "data.train"}
    return f"; a class of your own: {places.get(group, group)}._target_={option}"


def _where_there_is(config: str) -> str:
    """`; my_conf/model/net.yaml needs --config-dir my_conf` for a file that nobody looks at."""
    name = glob.escape(f"{config}.yaml")
    for file in (path for pattern in (name, f"*/{name}") for path in Path().glob(pattern)):
        folder = str(file).removesuffix(f"{config}.yaml").rstrip("/") or "."
        return f"; {file} needs --config-dir {folder}"
    return ""


def _members_there_are(group: str, name: str) -> str:
    """All members of a set if they are few, else the one that was probably meant."""
    names = members(group)
    near = nearest(name, names).removeprefix("; ")
    if len(listed(names)) <= _LONGEST_LIST:
        return "; ".join(filter(None, (f"there are: {listed(names)}", near)))
    return f"{near} --help lists all {len(names)}".lstrip()


def _in_an_experiment(group: str, option: str, override: str) -> str:
    """A line of an experiment's defaults list that lacks its slash, or what precedes it."""
    if group not in options_of("", ObjectType.GROUP) and group.partition("/")[0] not in SETS:
        return f"{group}/{option}: experiment=NAME takes the name of a file in experiment/"
    added = group.partition("/")[0] in SETS and not override
    line = f"{'' if added else 'override '}/{group}: {option or 'OPTION'}"
    return f"{group}: in an experiment a group begins with a slash; write `- {line}`"


def _one(group: str) -> str:
    return group.removesuffix("s")


def _added_twice(case: Case) -> str:
    key = case.key.lstrip("+")
    top, _, name = key.partition("/")
    if key in SETS and f"+{key}" in (word.partition("=")[0] for word in case.overrides):
        return f"+{key}: the sign stands after the equals sign: {key}=+NAME, {key}=-NAME"
    option = re.search(r"use 'override \S+: ([^']+)'", case.text)
    if option and not (top in SETS and value_given(top, case.overrides)):
        line = experiment_with(key, option[1], case.overrides)
        if line is not None:
            return f"{line}: {key} has an option already; write `override /{key}: {option[1]}`"
    if top not in SETS:
        if f"+{key}" in (word.partition("=")[0] for word in case.overrides):
            return f"+{key}: the group has an option already; write {key}=OPTION without +"
        return f"{key}: has two options at once; choose one of: {listed(options_of(key))}"
    if in_one_word := _in_one_word(top, case.overrides):
        return in_one_word
    who = who_has_on(top, name, case.overrides)
    return (
        f"{top}=+{name}: {name} is on already{who}; to choose its option write "
        f"{key}=OPTION ({listed(options_of(key))})"
    )


def _no_choice(case: Case) -> str:
    """A set that `minus/hooks: ${hooks}` finds no single option of."""
    key = case.key
    return _in_one_word(key, case.overrides) or (
        f"~{key}: no run goes without this key of the config; use {key}=none"
    )


def _in_one_word(group: str, overrides: Sequence[str]) -> str:
    edits = value_given(group, overrides)
    if not edits.startswith("["):
        return ""
    together = re.sub(r"[\[\], ]", "", edits)
    return f"{group}={edits}: all edits of a set are one word: {group}={together}"


def _override_not_on(case: Case) -> str:
    key = case.key
    top, _, name = key.partition("/")
    given = value_given(key, case.overrides)
    if "@experiment." in key:
        return (
            "its values would stand under `experiment`, where nobody reads them; make "
            "`# @package _global_` the first line of the file"
        )
    if top == "experiment":
        return _in_an_experiment(name.partition("@")[0], "", "override")
    if top in SETS and name:
        if name not in members(top):
            return _no_such_member(top, name)
        plus = f"{top}=+{name}" + ("" if given in ("", "default") else f"/{given}")
        return f"{key}={given or 'OPTION'}: {name} is not on; to add it write {plus}"
    groups = options_of("", ObjectType.GROUP)
    return f"{key}: there is no group of this name to override; groups are: {listed(groups)}"


def _deletion_not_on(case: Case) -> str:
    top, _, name = case.key.partition("=")[0].partition("/")
    if top in SETS and name:
        return f"~{case.key}: {name} is not on, so it cannot be taken away"
    return f"~{case.key}: there is nothing of this name to take away"


def _no_option_given(case: Case) -> str:
    groups = options_of("", ObjectType.GROUP)
    for override in case.overrides:
        key, _, value = override.partition("=")
        top, _, name = key.lstrip("+").partition("/")
        if top not in groups or not re.fullmatch(r"null|true|false|[-\d.]+", value.lower()):
            continue
        if top in SETS and name:
            return f"{override}: to take {name} away write {top}=-{name}"
        return needs_an_option(override)
    return on_one_line(case.text)


def needs_an_option(override: str) -> str:
    key = override.partition("=")[0]
    hint = f"{key}=none" if "none" in options_of(key) else f"one of: {listed(options_of(key))}"
    return f"{override}: {key} needs the name of an option; write {hint}"


# -- keys and values -----------------------------------------------------------------------------


def _no_such_key(case: Case) -> str:
    key = case.key
    _, _, rest = key.partition("/")
    if rest:
        return no_such_option(key, value_given(key, case.overrides))
    cause = next(
        (c for c in case.chain if isinstance(c, (ConfigAttributeError, ConfigKeyError))), None
    )
    parent = None if cause is None else cause.parent_node
    if cause is None or not isinstance(parent, DictConfig):
        return f"{key}: there is no such key in the config"
    path = str(parent._get_full_key(None) or "")
    wrong = str(cause.key)
    if path in SETS:
        return _no_such_member_key(path, wrong, key)
    there_are = [str(k) for k in parent if k != "hydra" and str(k)[0] != "_"]
    label = f"{path}.{wrong}" if path else wrong
    owner = path or "the config"
    if path and not there_are:
        given = value_given(key, case.overrides)
        return f"{label}: {path} is empty; to add to it write +{label}={given}"
    hint = f"; to hand a new one to the target write +{label}=" if "_target_" in parent else ""
    if not hint and _is_inside_a_target(parent):
        hint = f"; to add it write +{key}="
    hint = f"; another setting of the loader is added by +{label}=" if path == "data" else hint
    near = nearest(wrong, there_are) or ("" if path else _in_a_group(wrong, parent))
    return f"{label}: {owner} has no {wrong!r}; it has: {listed(there_are)}{near}{hint}"


def _is_inside_a_target(node: Any) -> bool:
    """Whether a mapping is a parameter of a target, or stands in one: it may take other keys."""
    while node is not None and "_target_" not in node:
        node = node._get_parent()
    return node is not None


def _in_a_group(key: str, config: DictConfig) -> str:
    """Where a key that was typed at the top may belong: `lr` in `optimizer`."""
    content = OmegaConf.to_container(config, resolve=False)
    assert isinstance(content, dict)
    paths = {
        str(inner): f"{group!s}.{inner!s}"
        for group, node in content.items()
        if isinstance(node, dict) and group not in ("hydra", *SETS)
        for inner in node
    }
    name = key if key in paths else nearest_name(key, paths)
    return f"; did you mean {paths[name]}?" if name else ""


def _no_such_member_key(group: str, name: str, key: str) -> str:
    if name in members(group):
        return f"{key}: {name} is not on; to add it write {group}=+{name} before it"
    return (
        f"{key}: there is no {_one(group)} {name!r}; {_members_there_are(group, name)} "
        f"(one of your own: +{group}.{name}._target_=MODULE.CLASS)"
    )


def _already_there(case: Case) -> str:
    given = value_given(case.key, case.overrides)
    return f"+{case.key}: the config has this key already; write {case.key}={given} without +"


def _bad_value(case: Case) -> str:
    causes = [said(link) for link in case.chain if isinstance(link, OmegaConfBaseException)]
    key, _, value = case.key.partition("=")
    if value.startswith("{") and causes and causes[0] in _MAPPING_FOR_A_LIST:
        return f"{case.key}: a list belongs here; write '{key}=[{value}]'"
    return f"{case.key}: {listed(causes[:1])}"


def _sweep_without_m(case: Case) -> str:
    key, _, value = case.key.partition("=")
    if key in SETS and re.fullmatch(r"[-+\w/,]+", value):
        together = "".join(v if v[:1] in "+-" else f"+{v}" for v in value.split(",") if v)
        apart = ",".join(v if v[:1] in "+-" else f"+{v}" for v in value.split(",") if v)
        return (
            f"{case.key}: for both at once write {key}={together}; "
            f"for a run with each: -m {key}={apart}"
        )
    each = f"{case.key}: for a run with each value add -m"
    is_one_of = key != "experiment" and options_of(key)
    return each if is_one_of else f"{each}; for one list write '{key}=[{value}]'"


# -- looking up ----------------------------------------------------------------------------------


def options_of(group: str, kind: ObjectType = ObjectType.CONFIG) -> list[str]:
    """The options of a group, or what else there is in it; edits of a set are left out."""
    names = GlobalHydra.instance().config_loader().get_group_options(group, kind)
    return [n for n in names if n[:1] not in ("+", "-") and (group or n not in ("hydra", *_HIDDEN))]


_HIDDEN = ("config",)


def value_given(key: str, overrides: Sequence[str]) -> str:
    for override in overrides:
        given, _, value = override.partition("=")
        if given.lstrip("+~") == key:
            return value
    return ""


def experiment_with(group: str, option: str, overrides: Sequence[str]) -> str | None:
    """The experiment, and the line in it, that chose an option; Hydra names another file."""
    name = value_given("experiment", overrides)
    for folder in config_folders() if name else ():
        file = folder / "experiment" / f"{name}.yaml"
        for number, line in enumerate(file.read_text().splitlines() if file.is_file() else (), 1):
            if re.search(rf"/?{re.escape(group)}(@\S+)?: *{re.escape(option)}\b", line):
                return f"{file}, line {number}"
    return None


RULES: tuple[tuple[str, Rule], ...] = (
    (r"(\S+) appears more than once in the final defaults list", _added_twice),
    (r"Multiple values for (\S+)\. ", _added_twice),
    (r"Error resolving interpolation '\$\{(hooks|sinks)\}'", _no_choice),
    (r"Could not override '([^']+)'\. ?\n?(?:No match|Did you mean)", _override_not_on),
    (r"No earlier Group Default for '([^']+)' exists", _override_not_on),
    (r"Could not override '([^']+)'", _no_such_key),
    (r"Could not delete '([^']+)'", _deletion_not_on),
    (r"Could not delete from config\. '([^']+)'", _deletion_not_on),
    (r"(Config group override must be a string)", _no_option_given),
    (r"An item is already at '([^']+)'", _already_there),
    (r"Error merging override (.+)", _bad_value),
    (r"Ambiguous value for argument '(.+)'", _sweep_without_m),
    (r"Sweep parameters '(.+)' requires", _sweep_without_m),
)

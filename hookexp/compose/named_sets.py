"""`hooks=+ema/swa-iter_timer`: adds to and takes from the default members of a named set.

`hooks` and `sinks` are sets whose members have names, and each member is a config group of its own
(`hooks/ema`). Hydra's override grammar accepts `+ema-iter_timer` as the name of an option of the
group `hooks`; what it lacks is a config of that name. `SetSource` answers for it with a defaults
list, so everything Hydra can do with an option works: sweeps, `hooks/ema=swa` beside it, `--info`.
A member that is one file, `hooks/mine.yaml`, has the option `default` like any other.

Taking away is a matter of the whole config, since an experiment may have added or set values for
what `-name` takes away. So `config.yaml` ends its defaults list with `minus/hooks: ${hooks}`, and
`SetSource` answers for that option once more, with nulls, which win by coming last.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

from hydra.core.config_search_path import ConfigSearchPath
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.plugins.config_source import ConfigResult, ConfigSource
from hydra.plugins.search_path_plugin import SearchPathPlugin
from omegaconf import DictConfig, OmegaConf

from hookexp.compose.set_edits import SETS, SetEdits
from hookexp.compose.wording import listed, nearest
from hookexp.errors import ConfigError

_MINUS = "minus"


def members(group: str) -> list[str]:
    """The names there are for a set, in every folder of the running Hydra's search path."""
    return sorted({name for source in _sources() for name in _members_of(source, group)})


def members_on(choices: Any, group: str) -> list[str]:
    """The names that a composition has on, from its choices per group."""
    prefix = f"{group}/"
    on = {str(key)[len(prefix) :] for key, value in choices.items() if _is_on(key, value, prefix)}
    on.update(_edits_in(choices, group).added)
    return sorted(on)


def check_taken_away(cfg: DictConfig, choices: Any) -> None:
    """Refuse to take away what is not on, and a config in which it still is.

    That is so where the primary config is not ours and does not end with what ours ends with.

    Raises:
        ConfigError: tells what is on, or the line that is missing.
    """
    for group in SETS:
        on = members_on(choices, group)
        for name in _edits_in(choices, group).removed:
            if name not in on:
                raise ConfigError(
                    f"{group}={choices[group]}: {name} is not on, so it cannot be taken away; "
                    f"on are: {listed(on)}{nearest(name, on)}"
                )
            if OmegaConf.select(cfg, f"{group}.{name}") is not None:
                raise ConfigError(
                    f"{group}=-{name}: {name} is still on; the defaults list of your primary "
                    f"config has to end with `- minus/{group}: ${{{group}}}`"
                )


class SetSource(ConfigSource):
    """Answers for edits of the default sets, and for members that are one file."""

    typed: ClassVar[str] = ""
    """The edits before the one that is being completed: `+ema` in `hooks=+ema+ea`."""

    @staticmethod
    def scheme() -> str:
        return "hookexp-sets"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path in SETS or _single_file(config_path) is not None

    def is_config(self, config_path: str) -> bool:
        group, _, option = config_path.partition("/")
        is_edit = group == _MINUS or (group in SETS and SetEdits.matches(option))
        return is_edit or _single_file_of_option(config_path) is not None

    def load_config(self, config_path: str) -> ConfigResult:
        group, _, option = config_path.partition("/")
        if group == _MINUS:
            group, _, option = option.partition("/")
            return self._result(_nulls(group, option), package="_global_")
        if (file := _single_file_of_option(config_path)) is not None:
            return _under_its_name(file, option.partition("/")[0])
        edits = SetEdits.parse(group, option)
        defaults: list[Any] = ["default"]
        defaults += [{name: choice or "default"} for name, choice in edits.added.items()]
        return self._result({"defaults": [*defaults, "_self_"]}, package=None)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The edits that completion offers."""
        if results_filter is ObjectType.GROUP:
            return []
        if config_path not in SETS:
            return [] if _single_file(config_path) is None else ["default"]
        there_are = members(config_path)
        fresh = [name for name in there_are if name not in re.split("[+-]", self.typed)]
        return [f"{prefix}{sign}{n}" for prefix in {"", self.typed} for n in fresh for sign in "+-"]

    def _result(self, content: dict[str, Any], package: str | None) -> ConfigResult:
        return ConfigResult(
            config=OmegaConf.create(content),
            path=self.full_path(),
            provider=self.provider,
            header={"package": package},
        )


class SetSearchPath(SearchPathPlugin):
    """Puts `SetSource` at the end of every search path."""

    config_dir: ClassVar[Path | None] = None
    """The user's folder of configs, where Hydra is not told of it: completion, error messages."""

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        search_path.append("hookexp", f"{SetSource.scheme()}://")
        if self.config_dir is not None:
            search_path.append("hookexp-config-dir", f"file://{self.config_dir.absolute()}")


def _nulls(group: str, option: str) -> dict[str, Any]:
    """What a set ends without, by its option."""
    if option == "none":
        return {group: None}
    removed = SetEdits.parse(group, option).removed if SetEdits.matches(option) else ()
    return {group: dict.fromkeys(removed)} if removed else {}


def _edits_in(choices: Any, group: str) -> SetEdits:
    option = str(choices.get(group))
    return SetEdits.parse(group, option) if SetEdits.matches(option) else SetEdits({}, ())


def _single_file_of_option(config_path: str) -> ConfigResult | None:
    """The file `hooks/mine.yaml`, asked for as `hooks/mine/default`."""
    member, _, option = config_path.rpartition("/")
    return _single_file(member) if option == "default" else None


def _single_file(member: str) -> ConfigResult | None:
    """A member of a set (`hooks/mine`) that is no folder of options but one file."""
    group, _, name = member.partition("/")
    if group not in SETS or not name or "/" in name:
        return None
    return next((s.load_config(member) for s in _sources() if s.is_config(member)), None)


def _under_its_name(file: ConfigResult, name: str) -> ConfigResult:
    """The file's content is the member, or what stands under the member's name in it is."""
    if "_target_" in file.config:
        return replace(file, header={"package": None})
    if name in file.config:
        return replace(file, header={"package": None}, config=file.config[name])
    return file


def _sources() -> list[ConfigSource]:
    hydra = GlobalHydra.instance()
    if not hydra.is_initialized():
        return []
    sources = hydra.config_loader().get_sources()
    return [s for s in sources if s.provider not in ("hookexp", "schema", "hydra")]


def _members_of(source: ConfigSource, group: str) -> list[str]:
    if not source.available() or not source.is_group(group):
        return []
    names = source.list(group, ObjectType.GROUP)
    for name in source.list(group, ObjectType.CONFIG):
        loaded = source.load_config(f"{group}/{name}").config
        if "_target_" in loaded or name in loaded:
            names.append(name)
    return names


def _is_on(key: Any, option: Any, prefix: str) -> bool:
    return str(key).startswith(prefix) and option not in (None, "none")

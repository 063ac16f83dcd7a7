"""`hooks=+ema/swa-iter_timer`: adds to and takes from the default members of a named set.

`hooks` and `sinks` are sets whose members have names, and each member is a config group of its own
(`hooks/ema`). Hydra's override grammar accepts `+ema-iter_timer` as the name of an option of the
group `hooks`; what it lacks is a config of that name. `SetSource` answers for it with a defaults
list, so everything Hydra can do with an option works: sweeps, `hooks/ema=swa` beside it, `--info`.

Taking away is a matter of the whole config, since an experiment may have added or set values for
what `-name` takes away. So `config.yaml` ends its defaults list with `minus/hooks: ${hooks}`, and
`SetSource` answers for that option once more, with nulls, which win by coming last.
"""

from __future__ import annotations

import re
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
    """Answers for the options of `hooks` and `sinks` that are edits of the default set."""

    typed: ClassVar[str] = ""
    """The edits before the one that is being completed: `+ema` in `hooks=+ema+ea`."""

    @staticmethod
    def scheme() -> str:
        return "hookexp-sets"

    def available(self) -> bool:
        return True

    def is_group(self, config_path: str) -> bool:
        return config_path in SETS

    def is_config(self, config_path: str) -> bool:
        group, _, option = config_path.partition("/")
        return group == _MINUS or (group in SETS and SetEdits.matches(option))

    def load_config(self, config_path: str) -> ConfigResult:
        group, _, option = config_path.partition("/")
        if group == _MINUS:
            group, _, option = option.partition("/")
            return self._result(_nulls(group, option), package="_global_")
        edits = SetEdits.parse(group, option)
        defaults: list[Any] = ["default"]
        for name, choice in edits.added.items():
            defaults.append(_default_of(group, name, choice))
        return self._result({"defaults": [*defaults, "_self_"]}, package=None)

    def list(self, config_path: str, results_filter: ObjectType | None) -> list[str]:
        """The edits that completion offers."""
        if config_path not in SETS or results_filter is ObjectType.GROUP:
            return []
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


def _default_of(group: str, name: str, choice: str | None) -> Any:
    """The item of a defaults list that puts a member into its set."""
    if choice is None and not any(s.is_group(f"{group}/{name}") for s in _sources()):
        for source in _sources():
            if source.is_config(f"{group}/{name}"):
                return _single_file(source, group, name)
    return {name: choice or "default"}


def _single_file(source: ConfigSource, group: str, name: str) -> str:
    """A member that is one file, `hooks/my_hook.yaml`: its content or its key is the member."""
    content = source.load_config(f"{group}/{name}").config
    return f"{name}@{name}" if "_target_" in content else name


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

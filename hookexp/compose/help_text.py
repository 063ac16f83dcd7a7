"""The parts of `--help` that are read from the config folders: groups, options, hooks, sinks."""

from __future__ import annotations

import platform
import sys
import textwrap
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

import hookexp
from hookexp.compose.named_sets import members
from hookexp.compose.set_edits import SETS

_WIDTH = 78


def versions() -> str:
    """What `--version` prints: this project's and those of what it stands on."""
    below = [f"{name} {metadata.version(name)}" for name in ("torch", "hydra-core", "omegaconf")]
    python = platform.python_version()
    return f"hookexp {hookexp.__version__} ({', '.join(below)}, Python {python})"


def group_help() -> str:
    """Resolver `hookexp.group_help`: each group with its options."""
    if not _is_wanted():
        return ""
    loader = GlobalHydra.instance().config_loader()
    groups = [g for g in loader.list_groups("") if g != "hydra" and g not in SETS]
    lines = []
    for group in groups:
        options = loader.get_group_options(group)
        if options:
            lines += _entry(group, ", ".join(options), max(map(len, groups)))
    return "\n".join(lines)


def member_help(group: str) -> str:
    """Resolver `hookexp.member_help`: each hook (or sink) in one line; * is on by default."""
    if not _is_wanted():
        return ""
    loader = GlobalHydra.instance().config_loader()
    names = members(group)
    lines = []
    for name in names:
        options = [o for o in loader.get_group_options(f"{group}/{name}") if o != "default"]
        text = _summary(group, name) + (f" (also: {', '.join(options)})" if options else "")
        mark = "*" if name in _default_members(group) else " "
        lines += _entry(f"{mark} {name}", text, max(map(len, names)) + 2)
    return "\n".join(lines)


def _is_wanted() -> bool:
    """Whether the command line asks for help.

    OmegaConf resolves the help template in every composition, since merging looks at each value;
    to read the heads of all configs for it would take longer than the composition itself.
    """
    return not {"-h", "--help"}.isdisjoint(sys.argv[1:])


def _entry(name: str, text: str, width: int) -> list[str]:
    head = f"  {name.ljust(width)}  "
    text = text.replace("$", "$$")  # Hydra fills in a template with this text.
    return textwrap.wrap(text, _WIDTH, initial_indent=head, subsequent_indent=" " * len(head)) or [
        head.rstrip()
    ]


def _folders() -> Iterator[Path]:
    for source in GlobalHydra.instance().config_loader().get_sources():
        if source.scheme() == "file":
            yield Path(source.path)


def _summary(group: str, name: str) -> str:
    """The comment that begins a member's config."""
    for folder in _folders():
        for path in (folder / group / name / "default.yaml", folder / group / f"{name}.yaml"):
            if path.is_file():
                lines = path.read_text(encoding="utf-8").splitlines()
                comments = [ln.lstrip("# ") for ln in lines[:2] if ln.startswith("# ")]
                return next((c for c in comments if not c.startswith("@")), "")
    return ""


def _default_members(group: str) -> set[str]:
    for folder in _folders():
        path = folder / group / "default.yaml"
        if path.is_file():
            defaults = OmegaConf.select(OmegaConf.load(path), "defaults") or []
            return {str(key) for item in defaults if OmegaConf.is_dict(item) for key in item}
    return set()

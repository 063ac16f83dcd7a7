"""A file imports only from its own floor's list below: the table of the design, held by a test.

Imports under TYPE_CHECKING are exempt. Leaves (floor 4) never import each other.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "hookexp"

FLOORS = {
    0: [
        "errors",
        "hidden",
        "append_file",
        "differences",
        "dist",
        "device",
        "seed",
        "log",
        "numeric",
        "precision",
        "signals",
    ],
    1: ["hook", "host_time", "state", "task", "sink", "monitor", "settings"],
    2: [
        "hook_list",
        "activation_checkpointing",
        "listeners",
        "contracts",
        "failures",
        "compat.",
        "message_hub",
        "parts",
        "stop_together",
        "sink_list",
        "meeting",
        "summary",
        "user_errors",
        "checkpoint.",
        "data.doubts",
        "data.endless",
        "data.loader",
        "data.order",
        "data.sampler",
        "data.settings",
        "data.source",
        "data.prefetch",
        "data.stream",
        "data.tracking",
        "data.workers",
        "optim.",
    ],
    3: ["loops", "runner"],
    4: ["hooks.", "models.", "tasks.", "data.", "sinks."],
    5: [
        "app",
        "build",
        "build_data",
        "build_doubts",
        "build_model",
        "build_optim",
        "verify",
        "compose.",
        "__main__",
    ],
}
MODULES = sorted(
    str(path.relative_to(PACKAGE).with_suffix("")).replace("/", ".")
    for path in PACKAGE.rglob("*.py")
    if path.name != "__init__.py" or path.parent.name == "digits"
)


def floor_of(module: str) -> int:
    for floor, names in FLOORS.items():
        for name in names:
            if module == name or (name.endswith(".") and f"{module}.".startswith(name)):
                return floor
    raise AssertionError(f"hookexp.{module} stands on no floor: add it to the table")


def imports_of(module: str) -> set[str]:
    """The modules of the package, and `hydra` or `omegaconf`, that a module imports at run time."""
    path = PACKAGE / (module.replace(".", "/") + ".py")
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            node.body = []
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names = [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
        else:
            continue
        for name in names:
            if name.startswith("hookexp."):
                found.add(name.removeprefix("hookexp."))
            elif name.split(".")[0] in ("hydra", "omegaconf"):
                found.add(name.split(".")[0])
    return {name for name in found if name in MODULES or name in ("hydra", "omegaconf")}


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module):
    floor = floor_of(module)
    for imported in imports_of(module):
        if imported in ("hydra", "omegaconf"):
            assert floor == 5, f"{module} imports {imported}; only floor 5 may"
        elif floor == 4:
            assert floor_of(imported) < 4, f"leaf {module} imports {imported} beside it"
        else:
            assert floor_of(imported) <= floor, f"{module} imports {imported} above it"


def test_the_loop_is_still_one_page():
    tree = ast.parse((PACKAGE / "loops.py").read_text())
    methods = [n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef)]
    assert max(n.end_lineno - n.lineno for n in methods) <= 60
    assert len((PACKAGE / "loops.py").read_text().splitlines()) <= 250

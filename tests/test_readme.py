"""The README names every hook, group and file that there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hookexp.hook import MOUNT_POINTS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
HOOKS = sorted(p.name for p in (ROOT / "conf" / "hooks").iterdir() if p.is_dir())


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_is_listed(hook):
    assert f"| `{hook}` |" in README


def test_every_hook_that_is_listed_is_there():
    listed = set(re.findall(r"^\| `(\w+)` \|", README, re.MULTILINE))
    assert listed <= set(HOOKS) | {"last_checkpoint"}


@pytest.mark.parametrize("hook", HOOKS)
def test_a_hook_is_one_stem_in_three_trees(hook):
    assert (ROOT / "hookexp" / "hooks" / f"{hook}.py").exists()
    assert (ROOT / "conf" / "hooks" / hook / "default.yaml").exists()
    assert (ROOT / "tests" / "hooks" / f"test_{hook}.py").exists()


def test_every_mount_point_is_named():
    missing = [p for p in MOUNT_POINTS if p.replace("_test", "_val") not in README]
    assert missing == []

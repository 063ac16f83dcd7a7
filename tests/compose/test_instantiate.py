"""Objects from config nodes, and the message for each mistake in one."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from hookexp.compose.instantiate import instantiate
from hookexp.errors import ConfigError

PARTS = """
import sys
from abc import ABC, abstractmethod
from hookexp.numeric import require_whole

class Box:
    def __init__(self, size, lid=None, items=()):
        if size == 0:
            raise ValueError(f"size={size}: use a number above 0")
        if size == 13:
            {}["deep"]
        self.size, self.lid, self.items = size, lid, items
        self.volume = size * 2 if size != "wide" else size - 1

class Counted:
    def __init__(self, size):
        require_whole("size", size)

class Half(ABC):
    @abstractmethod
    def open(self, wide: int) -> int: ...

def leave():
    sys.exit(0)

def later(first, scale=1):
    if scale < 0:
        raise ValueError("scale below 0")
    return first * scale
"""


@pytest.fixture(autouse=True)
def parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "box_parts.py").write_text(PARTS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "box_parts", raising=False)


def make(**node: Any) -> Any:
    target = node.pop("target", "box_parts.Box")
    return instantiate(OmegaConf.create({"_target_": target, **node}), "hooks.box")


def test_containers_are_plain_and_nested_nodes_are_made() -> None:
    box = make(size=1, lid={"_target_": "box_parts.Box", "size": 2}, items=[{"a": [1]}])
    assert box.lid.size == 2
    assert type(box.items) is list
    assert type(box.items[0]) is dict
    assert type(box.items[0]["a"]) is list


def test_text_that_looks_like_an_interpolation_is_left_alone() -> None:
    assert make(size=1, lid=r"\${not_a_key}").lid == "${not_a_key}"


@pytest.mark.parametrize(
    ("node", "message"),
    [
        ({"siez": 1}, r"hooks.box.siez: Box has no parameter 'siez'; it has: size, lid, items; "
                      r"did you mean size\?"),
        ({}, r"hooks.box: Box needs size"),
        ({"size": 0}, r"^hooks.box.size=0: use a number above 0$"),
        ({"size": "wide"}, r"hooks.box: Box\(size='wide'\) failed with TypeError: .*box_parts.py"),
        ({"size": 1, "lid": {"_target_": "box_parts.Box", "sze": 1}}, r"^hooks.box.lid.sze: "),
        ({"size": "${oc.env:NO_SUCH_VARIABLE}"}, r"hooks.box.size: Environment variable"),
        ({"target": "box_parts.Bx", "size": 1}, r"_target_=box_parts.Bx: .*did you mean Box\?"),
        ({"target": "box_parts.Half"}, r"=box_parts\.Half: the class lacks open\(self, wide\)$"),
        ({"target": "no_such.Box", "size": 1}, r"_target_=no_such.Box: cannot be imported"),
        ({"target": "Box", "size": 1}, r"_target_=Box: has no module; write MODULE\.Box, where"),
        ({"target": "box_parts", "size": 1}, r"=box_parts: is a module; .*=box_parts\.Box \("),
        ({"target": "os.system", "command": "true"}, r"hooks.box: Target 'os.system' is"),
        ({"target": "builtins.open", "file": "/no/such"}, r"hooks.box: .*FileNotFoundError"),
    ],
)  # fmt: skip
def test_one_message_for_a_mistake(node: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        make(**node)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("path", "told"), [("optimizer.g", True), ("hooks.g", False)])
def test_an_optimizer_that_is_to_be_made_later_is_told_how(path: str, told: bool) -> None:
    node = OmegaConf.create({"_target_": "torch.optim.Adam", "lr": 0.1})
    with pytest.raises(ConfigError, match=f"^{path}: Adam needs params; give ") as caught:
        instantiate(node, path)
    assert (f"_partial_: true (+{path}._partial_=true)" in str(caught.value)) is told


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import no_such_library", r"importing broken_parts failed: broken_parts\.py, line 1: "
                                   r"ModuleNotFoundError: No module named 'no_such_library'"),
        ("a = 1\nb = 1 / 0", r"importing broken_parts failed: broken_parts\.py, line 2: ZeroDiv"),
        ("def f(:", r"_target_=broken_parts\.Box: broken_parts\.py, line 1: "),
    ],
)  # fmt: skip
def test_a_module_that_fails_when_it_is_imported(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "broken_parts.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        make(target="broken_parts.Box")


def test_a_bug_stays_what_it_is() -> None:
    with pytest.raises(KeyError, match="deep") as caught:
        make(size=13)
    assert caught.value.__cause__ is None
    assert caught.traceback[-1].path.name == "box_parts.py"
    assert "while hooks.box was made (box_parts.Box)" in caught.value.__notes__


def test_a_refusal_keeps_its_cause() -> None:
    with pytest.raises(ConfigError) as caught:
        make(size=0)
    assert isinstance(caught.value.__cause__, ValueError)


def test_a_partial_is_checked_when_made_and_when_called() -> None:
    assert make(target="box_parts.later", _partial_=True, scale=3)(2) == 6
    with pytest.raises(ConfigError, match=r"hooks.box.scal: later has no parameter 'scal'"):
        make(target="box_parts.later", _partial_=True, scal=3)
    refuses = make(target="box_parts.later", _partial_=True, scale=-1)
    with pytest.raises(ConfigError, match=r"hooks.box \(later\): scale below 0"):
        refuses(2)


@pytest.mark.parametrize(
    ("target", "node", "message"),
    [
        (
            "hookexp.hooks.logger.LoggerHook",
            {"interval": 0},
            "hooks.box.interval=0: use a whole number of iterations, 1 or more",
        ),
        ("box_parts.Counted", {"size": 0}, "hooks.box.size=0: use a whole number, 1 or more"),
    ],
)
def test_a_check_of_numbers_says_no_line_of_its_own(
    target: str, node: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        make(target=target, **node)
    assert str(refused.value) == message


def test_the_config_is_not_changed() -> None:
    cfg = OmegaConf.create(
        {"hooks": {"box": {"_target_": "box_parts.Box", "size": "${n}"}}, "n": 4}
    )
    before = OmegaConf.to_yaml(cfg)
    assert instantiate(cfg.hooks.box, "hooks.box").size == 4
    assert OmegaConf.to_yaml(cfg) == before


def test_a_target_that_exits_is_told() -> None:
    node = OmegaConf.create({"_target_": "box_parts.leave"})
    with pytest.raises(ConfigError, match=r"^hooks\.x: sys\.exit\(\) was called while it was made"):
        instantiate(node, "hooks.x")

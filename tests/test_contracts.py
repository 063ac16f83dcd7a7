"""Contracts between hooks: told when they are put together, with both names and priorities."""

from __future__ import annotations

import pytest
from hydra import compose

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_hooks
from hookexp.compose.conf_dir import with_hydra
from hookexp.contracts import applying
from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.hook_list import HookList


class Anyone(Hook):
    pass


class Needs(Hook):
    requires = ("other",)


class Clashes(Hook):
    conflicts = ("other",)


class First(Hook):
    before = ("other",)


class Second(Hook):
    after = ("other",)


class Careless(Hook):
    before = "checkpoint"


def put_together(hook, priority, other_priority=50, with_other=True):
    hooks = HookList()
    if with_other:
        hooks.register(Anyone(), "other", other_priority)
    hooks.register(hook, "mine", priority)
    hooks.check_contracts()
    return hooks


def config(*overrides):
    with with_hydra():
        return compose("config", overrides=list(overrides))


@pytest.mark.parametrize(
    ("hook", "priority", "message"),
    [
        (
            Clashes(),
            70,
            r"hooks\.mine \(priority 70\) cannot be in one run with hooks\.other",
        ),
        (First(), 70, r"hooks\.mine \(priority 70\) has to be called before hooks\.other"),
        (First(), 50, r"set hooks\.mine\.priority=49 or hooks\.other\.priority=51"),
        (Second(), 30, r"hooks\.other \(priority 50\) has to be called before hooks\.mine .*30\)"),
        (Second(), 30, r"set hooks\.other\.priority=29 or hooks\.mine\.priority=51"),
        (Careless(), 50, r"hooks\.mine: Careless\.before is 'checkpoint'; use a tuple"),
    ],
)
def test_a_broken_contract_names_both_hooks_and_what_to_change(hook, priority, message):
    with pytest.raises(ConfigError, match=message):
        put_together(hook, priority)


@pytest.mark.parametrize("ways", [0, 1])
@pytest.mark.parametrize(("hook", "priority"), [(First(), 70), (First(), 50), (Second(), 30)])
def test_what_the_message_says_to_change_mends_it(hook, priority, ways):
    with pytest.raises(ConfigError) as caught:
        put_together(hook, priority)
    change = str(caught.value).rpartition("set ")[2].split(" or ")[ways]
    name, number = change.removeprefix("hooks.").replace(".priority", "").split("=")
    priorities = {"mine": priority, "other": 50, name: int(number)}
    put_together(hook, priorities["mine"], priorities["other"])


def test_at_an_end_of_the_scale_one_way_is_left():
    with pytest.raises(ConfigError, match=r"set hooks\.mine\.priority=49$"):
        put_together(First(), 100)
    with pytest.raises(ConfigError, match=r"set hooks\.other\.priority=71$"):
        put_together(First(), 70, other_priority=0)


def test_a_hook_that_is_required_and_not_there():
    with pytest.raises(
        ConfigError, match=r"hooks\.mine \(priority 50\) requires hooks\.other, .*hooks=\+other"
    ):
        put_together(Needs(), 50, with_other=False)
    put_together(Needs(), 50)


def test_contracts_with_hooks_that_are_not_there_are_void():
    for hook in (Clashes(), First(), Second()):
        assert applying(put_together(hook, 50, with_other=False).entries) == []


def test_a_foreign_class_with_methods_of_these_names_declares_nothing():
    class Foreign:
        def before(self):
            pass

        @property
        def requires(self):
            return "nothing"

    assert applying(put_together(Foreign(), 50).entries) == []


def test_ema_is_called_before_checkpoint():
    with pytest.raises(ConfigError, match=r"hooks\.ema \(priority 95\).*hooks\.checkpoint \(pri"):
        build_hooks(config("+hooks/ema=default", "hooks.ema.priority=95"))
    contracts = applying(build_hooks(config("+hooks/ema=default")).entries)
    assert "ema is called before checkpoint" in map(str, contracts)


def test_a_hook_registered_during_a_run_is_checked_too(make_runner):
    class Adder(Hook):
        def before_train(self, runner):
            runner.register_hook(Needs(), name="late")

    with pytest.raises(ConfigError, match=r"hooks\.late \(priority 50\) requires hooks\.other"):
        make_runner({"adder": Adder()}, max_epochs=1).run("train")

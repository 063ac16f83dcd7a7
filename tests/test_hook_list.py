"""Call order, foreign hooks, and what is refused when a hook is registered."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.hook_list import HookList
from hookexp.message_hub import MessageHub

RUNNER = SimpleNamespace(epoch=3, iter=7, message_hub=MessageHub())


def make_hook(log, name, priority="NORMAL"):
    class Probe(Hook):
        def before_train(self, runner):
            log.append(name)

    probe = Probe()
    probe.priority = priority
    return probe


def test_order_is_by_priority_then_by_registration():
    log, hooks = [], HookList()
    for name, priority in [("a", "LOW"), ("b", 50), ("c", "HIGHEST"), ("d", "NORMAL")]:
        hooks.register(make_hook(log, name, priority), name)
    hooks.before_train(RUNNER)
    assert log == ["c", "b", "d", "a"]


def test_the_priority_given_at_registration_wins():
    log, hooks = [], HookList()
    hooks.register(make_hook(log, "a", "LOW"), "a", priority="VERY_HIGH")
    hooks.register(make_hook(log, "b"), "b")
    hooks.before_train(RUNNER)
    assert log == ["a", "b"]
    assert [(e.name, e.priority) for e in hooks.entries] == [("a", 10), ("b", 50)]


def test_a_hook_registered_inside_a_mount_point_first_runs_at_the_next_call():
    log, hooks = [], HookList()

    class Adder(Hook):
        def before_train(self, runner):
            if len(hooks) == 1:
                hooks.register(make_hook(log, "late"), "late")

    hooks.register(Adder(), "adder")
    hooks.before_train(RUNNER)
    assert log == []
    hooks.before_train(RUNNER)
    assert log == ["late"]


def test_which_hooks_are_never_called():
    class OfAnotherFramework(Hook):
        def on_train_epoch_end(self, trainer):
            """Never called."""

    class LeavesItOut(Hook):
        def before_train(self, runner):
            """Called where it is configured so."""

        def get_triggered_stages(self):
            return []

    class Opens(Hook):
        opens = ("after_sample",)

    hooks = HookList()
    for kind in (OfAnotherFramework, LeavesItOut, Opens):
        hooks.register(kind(), kind.__name__)
    hooks.register(make_hook([], "probe"), "probe")
    assert hooks.that_are_never_called() == ["OfAnotherFramework"]


def test_a_hook_that_learns_what_it_has_to_do_is_asked_again():
    log, hooks = [], HookList()

    class Late(Hook):
        stages = ("before_train",)

        def get_triggered_stages(self):
            return [*self.stages]

        def before_train(self, runner):
            log.append("before")
            self.stages = ("after_train",)
            hooks.ask_again(self)

        def after_train(self, runner):
            log.append("after")

    hooks.register(Late(), "late")
    hooks.register(make_hook(log, "other"), "other")
    for _ in range(2):
        hooks.before_train(RUNNER)
        hooks.after_train(RUNNER)
    assert log == ["before", "other", "after", "other", "after"]


def test_a_fan_in_takes_of_the_arguments_those_it_names():
    seen, hooks = [], HookList()

    class Modes(Hook):
        def _after_iter(self, runner, mode):
            seen.append((mode, None))

        def _before_epoch(self, runner):
            seen.append(("epoch", None))

        def _before_iter(self, runner, data_batch, mode="train"):
            seen.append((mode, data_batch))

    class ByKeyword(Hook):
        def after_train_iter(self, runner, *, batch_idx, data_batch=None, outputs=None):
            seen.append((batch_idx, outputs))

    class Needs(Hook):
        def _after_epoch(self, runner, batch_size):
            pass

    hooks.register(Modes(), "modes")
    hooks.before_train_epoch(RUNNER)
    hooks.before_val_iter(RUNNER, batch_idx=1, data_batch="a batch")
    hooks.after_val_iter(RUNNER, batch_idx=1, data_batch="a batch", outputs={})
    hooks.after_test_iter(RUNNER, batch_idx=1)
    assert seen == [("epoch", None), ("val", "a batch"), ("val", None), ("test", None)]
    hooks.register(ByKeyword(), "by_keyword")
    hooks.after_train_iter(RUNNER, batch_idx=1, outputs="outputs")
    assert seen[4:] == [("train", None), (1, "outputs")]
    with pytest.raises(ConfigError, match=r"Needs\._after_epoch takes batch_size, but after_train"):
        hooks.register(Needs(), "needs")


def test_hooks_of_one_class_are_told_apart_but_for_the_first():
    class One(Hook):
        pass

    class Other(Hook):
        pass

    hooks, (first, second, other) = HookList(), (One(), One(), Other())
    for name, hook in (("first", first), ("second", second), ("other", other)):
        hooks.register(hook, name)
    suffixes = [hooks.suffix_of(hook) for hook in (first, second, other, One())]
    assert suffixes == ["", "_second", "", ""]


def test_arguments_reach_the_hooks_by_their_published_names():
    seen, hooks = {}, HookList()

    class Probe(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            seen["before"] = (batch_idx, data_batch)

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            seen["after"] = (batch_idx, data_batch, outputs)

        def after_val_epoch(self, runner, metrics=None):
            seen["metrics"] = metrics

        def before_save_checkpoint(self, runner, checkpoint):
            seen["checkpoint"] = checkpoint

    hooks.register(Probe(), "probe")
    hooks.before_train_iter(RUNNER, batch_idx=1, data_batch="x")
    hooks.after_train_iter(RUNNER, batch_idx=1, data_batch="x", outputs={"loss": 2})
    hooks.after_val_epoch(RUNNER, metrics={"m": 1.0})
    hooks.before_save_checkpoint(RUNNER, checkpoint={"c": 1})
    assert seen == {
        "before": (1, "x"),
        "after": (1, "x", {"loss": 2}),
        "metrics": {"m": 1.0},
        "checkpoint": {"c": 1},
    }


@pytest.mark.parametrize("with_names", [True, False])
def test_a_fan_in_that_takes_any_argument_is_given_the_mode(with_names):
    seen, hooks = [], HookList()

    class Named(Hook):
        def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, **more):
            seen.append(more)

    class Unnamed(Hook):
        def _after_iter(self, runner, **given):
            seen.append({"mode": given["mode"]})

    hooks.register(Named() if with_names else Unnamed(), "hook")
    hooks.after_train_iter(RUNNER, batch_idx=0, data_batch=None, outputs={})
    hooks.after_val_iter(RUNNER, batch_idx=0, data_batch=None, outputs={})
    assert seen == [{"mode": "train"}, {"mode": "val"}]


def test_a_fan_in_serves_train_val_and_test():
    modes, hooks = [], HookList()

    class Probe(Hook):
        def _before_iter(self, runner, batch_idx, data_batch=None, mode="train"):
            modes.append(mode)

    hooks.register(Probe(), "probe")
    for mode in ("train", "val", "test"):
        getattr(hooks, f"before_{mode}_iter")(RUNNER, batch_idx=0)
    assert modes == ["train", "val", "test"]


def test_a_hook_may_leave_out_a_point_at_which_it_has_nothing_to_do():
    log, hooks = [], HookList()

    class Rare(Hook):
        def get_triggered_stages(self):
            return [s for s in super().get_triggered_stages() if s != "before_train_iter"]

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            log.append("iter")

        def before_run(self, runner):
            log.append("run")

    hooks.register(Rare(), "rare")
    hooks.before_run(RUNNER)
    hooks.before_train_iter(RUNNER, batch_idx=0)
    assert log == ["run"]
    assert hooks.entries[0].stages == ("before_run",)


def test_a_hook_is_asked_once_what_it_serves_however_many_others_there_are():
    asked, hooks = [], HookList()

    class Asked(Hook):
        def __init__(self, name):
            self.name = name

        def get_triggered_stages(self):
            asked.append(self.name)
            return super().get_triggered_stages()

    for name in "abc":
        hooks.register(Asked(name), name)
    assert asked == ["a", "b", "c"]


def test_any_object_with_methods_of_those_names_is_a_hook():
    log, hooks = [], HookList()

    class Foreign:
        priority = "LOW"

        def before_train(self, runner):
            log.append("before_train")

        def after_train_iter(self, runner):
            log.append("after_train_iter")

        def before_epoch(self, runner):
            log.append("before_epoch")

        def _after_epoch(self, runner, mode="train"):
            log.append(f"_after_epoch {mode}")

    hooks.register(Foreign(), "foreign")
    hooks.before_train(RUNNER)
    hooks.after_train_iter(RUNNER, batch_idx=0, data_batch=None, outputs={})
    hooks.before_val_epoch(RUNNER)
    hooks.after_val_epoch(RUNNER, metrics={})
    assert log == ["before_train", "after_train_iter", "before_epoch", "_after_epoch val"]
    assert hooks.entries[0].priority == 70


def test_a_published_base_class_with_its_own_fan_ins():
    log, hooks = [], HookList()

    class PublishedBase:
        priority = "NORMAL"

        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self._before_iter(runner, batch_idx=batch_idx, data_batch=data_batch, mode="train")

        def after_run(self, runner):
            raise AssertionError("an inherited no-op must not be called")

        def _before_iter(self, runner, batch_idx, data_batch=None, mode="train"):
            raise AssertionError("an inherited no-op must not be called")

        def get_triggered_stages(self):
            return ["before_train_iter"]

    class Theirs(PublishedBase):
        def _before_iter(self, runner, batch_idx, data_batch=None, mode="train"):
            log.append((batch_idx, mode))

    hooks.register(Theirs(), "theirs")
    hooks.before_train_iter(RUNNER, batch_idx=4, data_batch=None)
    hooks.after_run(RUNNER)
    assert log == [(4, "train")]


def test_points_that_hooks_open_for_others():
    log, hooks = [], HookList()

    class Opener(Hook):
        opens = ("after_sample",)

    class Listener(Hook):
        def after_sample(self, runner, sample):
            log.append(sample)

    hooks.register(Listener(), "listener")
    hooks.register(Opener(), "opener")
    hooks.check_method_names()
    hooks.call("after_sample", RUNNER, sample=5)
    assert log == [5]
    with pytest.raises(ValueError, match="opens = "):
        hooks.call("after_nothing", RUNNER)


def test_an_error_names_hook_point_epoch_and_iter():
    hooks = HookList()

    class Bad(Hook):
        def before_val(self, runner):
            raise ZeroDivisionError

    hooks.register(Bad(), "bad")
    with pytest.raises(ZeroDivisionError) as caught:
        hooks.before_val(RUNNER)
    assert caught.value.__notes__ == ["in hook 'bad' (Bad) at before_val, epoch 3, iter 7"]


class Misspelt(Hook):
    def after_trian_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        pass


class NotAPoint(Hook):
    def before_forward(self, runner):
        pass


class AsksForMore(Hook):
    def before_train_iter(self, runner, batch_idx, data_batch, temperature):
        pass


class Swapper(Hook):
    swaps_weights = True


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda h: h.register(Misspelt(), "x"), "did you mean after_train_iter"),
        (lambda h: h.register(NotAPoint(), "x"), "before_forward is not a mount point"),
        (lambda h: h.register(AsksForMore(), "x"), "temperature"),
        (lambda h: h.register(Hook(), "x", priority=500), r"hooks\.x: priority 500"),
        (lambda h: h.register(Hook(), "x", priority="HIHG"), r"hooks\.x: priority 'HIHG'"),
        (lambda h: [h.register(Swapper(), n) for n in "ab"], "hooks.b and hooks.a both exchange"),
        (lambda h: [h.register(Hook(), "x") for _ in "ab"], "of this name already"),
        (lambda h: [h.register(hook, n) for hook in [Hook()] for n in "ab"], "as hooks.a"),
    ],
)
def test_what_is_refused(make, message):
    hooks = HookList()
    with pytest.raises(ConfigError, match=message):
        make(hooks)
        hooks.check_method_names()


def test_a_method_may_be_given_to_the_object():
    class Made(Hook):
        def __init__(self, seen):
            self.after_train = lambda runner: seen.append(runner)

    hooks, seen = HookList(), []
    hooks.register(Made(seen), "made")
    hooks.check_method_names()
    hooks.after_train("the runner")
    assert seen == ["the runner"]


def test_helpers_of_a_hook_are_no_mistakes():
    class Fine(Hook):
        def state_dict(self):
            return {}

        def average(self):
            pass

        def _after_all(self):
            pass

    hooks = HookList()
    hooks.register(Fine(), "fine")
    hooks.check_method_names()


def test_listeners_are_wrapped_and_unwrapped_between_two_calls():
    log, hooks = [], HookList()
    hooks.register(make_hook(log, "a"), "first")

    class Newcomer(Hook):
        def before_train(self, runner):
            log.append("new")

    def wrapper_of(tag):
        def wrap(call, point, name):
            def wrapped(runner, *args, **kwargs):
                log.append(f"{tag} {point} {name}")
                return call(runner, *args, **kwargs)

            return wrapped

        return wrap

    def calls():
        log.clear()
        hooks.before_train(RUNNER)
        hooks.after_train(RUNNER)
        return list(log)

    undo_one = hooks.wrap_listeners(wrapper_of("1"))
    assert calls() == ["1 before_train *", "1 before_train first", "a"]
    undo_two = hooks.wrap_listeners(wrapper_of("2"))
    assert calls() == [
        *("2 before_train *", "1 before_train *"),
        *("2 before_train first", "1 before_train first", "a"),
    ]
    undo_one()
    hooks.register(Newcomer(), "newcomer")
    inside = ["2 before_train first", "a", "2 before_train newcomer", "new"]
    assert calls() == ["2 before_train *", *inside]
    undo_two()
    undo_two()
    assert calls() == ["a", "new"]


def test_two_that_wrap_with_the_same_function_undo_their_own():
    seen, hooks = [], HookList()
    hooks.register(make_hook([], "a"), "a")

    def wrap(call, point, name):
        return lambda runner, *args, **kwargs: (seen.append(name), call(runner, *args, **kwargs))

    undo = hooks.wrap_listeners(wrap)
    hooks.wrap_listeners(wrap)
    undo()
    hooks.before_train(RUNNER)
    assert seen == ["*", "a"]


def test_an_error_in_a_wrapped_listener_says_whose_it_is():
    class Fails(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            raise RuntimeError("boom")

    hooks = HookList()
    hooks.register(Fails(), "mine")
    hooks.wrap_listeners(lambda call, point, name: lambda *args, **kwargs: call(*args, **kwargs))
    with pytest.raises(RuntimeError) as caught:
        hooks.before_train_iter(RUNNER, batch_idx=0)
    assert caught.value.__notes__ == [
        "in hook 'mine' (Fails) at before_train_iter, epoch 3, iter 7"
    ]

"""One function at one mount point, in real runs."""

from __future__ import annotations

import pytest

from hookexp.hook import Priority
from hookexp.hooks.closure import ClosureHook

said = []


def say_hello(runner):
    """Named by its dotted path in a test below."""
    said.append(runner.epoch)


not_a_function = 3


@pytest.mark.parametrize("fn", [say_hello, f"{__name__}.say_hello"])
def test_a_function_is_called_at_its_mount_point_alone(make_runner, fn):
    said.clear()
    make_runner({"hello": ClosureHook("before_train_epoch", fn)}, max_epochs=3).run("train")
    assert said == [0, 1, 2]


def test_it_takes_of_the_arguments_those_it_names(make_runner):
    losses = []
    closure = ClosureHook(
        "after_train_iter", lambda runner, outputs: losses.append(outputs["loss"].item())
    )
    make_runner({"closure": closure}, max_epochs=2).run("train")
    assert len(losses) == 6
    assert losses[-1] < losses[0]


def test_a_fan_in_serves_all_modes(make_runner):
    modes = []

    def note(runner, batch_idx, data_batch=None, outputs=None, mode="train"):
        modes.append(mode)

    make_runner({"closure": ClosureHook("_after_iter", note)}, max_epochs=1).run("train")
    assert modes == ["train", "train", "train", "val"]
    modes.clear()
    closure = ClosureHook("_before_epoch", lambda runner, mode: modes.append(mode))
    make_runner({"closure": closure}, max_epochs=1).run("train")
    closure = ClosureHook("_after_iter", lambda runner, mode: modes.append(mode))
    make_runner({"closure": closure}, max_epochs=1).run("train")
    assert modes == ["train", "val", "train", "train", "train", "val"]


def test_two_of_them_do_not_know_each_other(make_runner):
    calls = []
    first = ClosureHook("before_train", lambda runner: calls.append("first"))
    second = ClosureHook("after_train", lambda runner: calls.append("second"))
    make_runner({"first": first, "second": second}, max_epochs=1).run("train")
    assert calls == ["first", "second"]
    assert first.get_triggered_stages() == ["before_train"]
    assert ClosureHook.priority == Priority.NORMAL


def test_an_error_of_the_function_says_whose_it_is(make_runner):
    def fail(runner):
        raise RuntimeError("boom")

    runner = make_runner({"mine": ClosureHook("before_train", fail)}, max_epochs=1)
    with pytest.raises(RuntimeError, match="boom") as caught:
        runner.run("train")
    assert "in hook 'mine' at before_train, epoch 0, iter 0" in caught.value.__notes__


@pytest.mark.parametrize(
    ("fn_name", "fn", "message"),
    [
        ("after_trian_iter", say_hello, "fn_name=after_trian_iter: .* mean after_train_iter?"),
        ("before_train", "no_such_module.fn", "fn=no_such_module.fn: cannot be imported .*No mod"),
        ("before_train", f"{__name__}.no_such", "fn=.*no_such: cannot be imported .*no attribute"),
        ("before_train", "nonsense!", "fn=nonsense!: cannot be imported"),
        ("before_train", f"{__name__}.not_a_function", "is an int, a function is needed"),
    ],
)
def test_what_is_refused(fn_name, fn, message):
    with pytest.raises(ValueError, match=message):
        ClosureHook(fn_name, fn)

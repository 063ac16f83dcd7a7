"""What is made of a set or of a folder may have another order after a resume: it is told."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fakes import TinyData, TinyTask
from torch.utils.data import ConcatDataset, Subset

from hookexp.data.order import orders_of, what_differs
from hookexp.hooks.checkpoint import CheckpointHook

TOLD = "the same items as before the resume, in another order"


def told(one, two):
    return what_differs(orders_of(one, "data.train"), orders_of(two, "data.train"))


class Part:
    def __init__(self, part):
        self.part = part


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (["a", "b", "c"], ["b", "a", "c"]),
        (("a", "b"), ("b", "a")),
        ({"a": 0, "b": 1}, {"a": 1, "b": 0}),
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}),
        ([Path("x"), Path("y")], [Path("y"), Path("x")]),
        ([("x", 0), ("y", 1)], [("y", 1), ("x", 0)]),
        (np.array([1, 2, 3]), np.array([2, 1, 3])),
        (torch.tensor([1, 2, 3]), torch.tensor([3, 2, 1])),
    ],
)
def test_another_order_is_told(one, two):
    message = told(Part(one), Part(two))
    assert message.startswith("data.train.part") and TOLD in message
    assert told(Part(Part(one)), Part(Part(two))).startswith("data.train.part.part")
    assert not told(Part(one), Part(one))


@pytest.mark.parametrize(
    ("one", "two"),
    [
        (["/here/a", "/here/b"], ["/there/b", "/there/a"]),
        (["a", "b"], ["b", "a", "c"]),
        ({"a": 0, "b": 1}, {"b": 1, "a": 0}),
        ([object(), object()], [object(), object()]),
        ([("x", object()), ("y", 1)], [("x", object()), ("y", 1)]),
        ([], []),
        (torch.rand(3, 3), torch.rand(3, 3)),
        (1, 2),
    ],
)
def test_other_items_and_what_has_no_order_are_not(one, two):
    assert not told(Part(one), Part(two))


def test_what_a_data_set_is_made_of_is_looked_into():
    whole = TinyData(6)
    one, two = (ConcatDataset([Subset(whole, order), whole]) for order in ([0, 1, 2], [1, 0, 2]))
    assert told(one, two).startswith("data.train.datasets.0.indices: ")


@pytest.mark.parametrize(
    "tensor", [torch.ones(3).to_sparse(), torch.ones(3, device="meta"), torch.ones(())]
)
def test_what_has_no_plain_memory_is_passed_over(tensor):
    assert orders_of(Part(tensor), "data.train") == {}


def test_what_holds_itself_has_an_end():
    one = Part(["a", "b"])
    one.itself = one
    assert set(orders_of(one, "data.train", depth=50)) == {"data.train.part"}


def test_a_resumed_run_says_so_once(make_runner, tmp_path, caplog):
    class Worded(TinyTask):
        def __init__(self, words):
            super().__init__()
            self.words = words

    def run(max_epochs, words, resume=None):
        caplog.clear()
        hooks = {"checkpoint": CheckpointHook()}
        runner = make_runner(
            hooks, work_dir=tmp_path, task=Worded(words), max_epochs=max_epochs, resume=resume
        )
        runner.run("train")
        return caplog.text.count(TOLD)

    assert run(1, ["a", "b"]) == 0
    assert run(2, ["a", "b"], "auto") == 0
    assert run(3, ["b", "a"], "auto") == 1
    assert "task.words: the same items" in caplog.text
    assert run(4, ["b", "a"], "auto") == 0

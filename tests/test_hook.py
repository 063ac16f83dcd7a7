"""Priorities, mount points and the helpers that say when a hook is due."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from hookexp.hook import MOUNT_POINTS, Hook, Priority

PUBLISHED = [
    "before_run",
    "after_run",
    "before_train",
    "after_train",
    "before_train_epoch",
    "after_train_epoch",
    "before_train_iter",
    "after_train_iter",
    "before_val",
    "after_val",
    "before_val_epoch",
    "after_val_epoch",
    "before_val_iter",
    "after_val_iter",
    "before_test",
    "after_test",
    "before_test_epoch",
    "after_test_epoch",
    "before_test_iter",
    "after_test_iter",
    "before_save_checkpoint",
    "after_load_checkpoint",
]


def test_the_published_mount_points_and_ours_are_there():
    assert set(MOUNT_POINTS) == {
        *PUBLISHED,
        "before_optim_step",
        "after_optim_step",
        "on_exception",
    }
    assert len(PUBLISHED) == 22


@pytest.mark.parametrize(
    ("given", "number"),
    [("HIGHEST", 0), ("very_high", 10), ("Normal", 50), (73, 73), ("12", 12), (Priority.LOW, 70)],
)
def test_priorities_by_name_and_number(given, number):
    assert Priority.parse(given) == number


@pytest.mark.parametrize("given", [101, -1, "HIHG", 1.5, True, None])
def test_a_bad_priority_lists_what_is_allowed(given):
    with pytest.raises(ValueError, match=r"0 to 100 .*HIGHEST \(0\).*LOWEST \(100\)"):
        Priority.parse(given)


def test_triggered_stages_include_those_of_a_fan_in():
    class Timer(Hook):
        def before_run(self, runner):
            pass

        def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, mode="train"):
            pass

    assert Timer().get_triggered_stages() == [
        "before_run",
        "after_train_iter",
        "after_val_iter",
        "after_test_iter",
    ]


def test_when_a_hook_is_due():
    at = SimpleNamespace
    due_epochs = [e + 1 for e in range(10) if Hook.every_n_epochs(at(epoch=e), 2, start=5)]
    assert due_epochs == [5, 7, 9]
    assert [i for i in range(9) if Hook.every_n_train_iters(at(iter=i), 3)] == [2, 5, 8]
    assert not Hook.every_n_epochs(at(epoch=0), -1)
    assert Hook.every_n_inner_iters(4, 5)
    assert Hook.end_of_epoch([1, 2, 3], 2)
    assert Hook.is_last_train_iter(at(iter=9, max_iters=10))
    assert Hook.is_last_train_epoch(at(epoch=1, max_epochs=2))

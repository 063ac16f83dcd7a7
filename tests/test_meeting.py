"""Whether ranks ask together, with the ranks as threads that share a store."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from itertools import count
from threading import Thread
from typing import Any

import pytest
import torch.distributed as td

from hookexp import meeting
from hookexp.meeting import Meeting


@pytest.fixture
def meet(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[bool]]:
    """Has each rank enter a meeting and do something there; returns what they were answered."""
    store, names = td.HashStore(), map(str, count())
    monkeypatch.setattr(td.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr(meeting, "_SECONDS_BETWEEN_LOOKS", 0.01)

    def run(*ranks: Callable[[Meeting, list[Any]], None]) -> list[Any]:
        monkeypatch.setattr("hookexp.dist.world_size", lambda: len(ranks))
        name = next(names)
        monkeypatch.setattr("hookexp.dist.broadcast", lambda value: name)
        meetings, answers = [], []
        for _ in ranks:
            meetings.append(Meeting())

        def enter(one: Meeting, act: Callable[[Meeting, list[Any]], None]) -> None:
            try:
                with one:
                    act(one, answers)
            except ZeroDivisionError:
                answers.append("failed")

        threads = [
            Thread(target=enter, args=p, daemon=True) for p in zip(meetings, ranks, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(timeout=20)
        assert not any(thread.is_alive() for thread in threads), "a rank waits for good"
        return answers

    return run


def asks(one: Meeting, answers: list[Any]) -> None:
    answers.append(one.all_ask())


def asks_one_point_later(one: Meeting, answers: list[Any]) -> None:
    one.go_on()
    asks(one, answers)


def fails(one: Meeting, answers: list[Any]) -> None:
    raise ZeroDivisionError


def test_all_ask_at_the_same_point(meet):
    assert meet(asks, asks, asks) == [True] * 3


def test_two_that_ask_at_different_points_do_not_ask_together(meet):
    assert meet(asks, asks_one_point_later) == [False] * 2


def test_one_that_has_failed_is_not_waited_for(meet):
    assert sorted(meet(asks, fails), key=str) == [False, "failed"]


def test_one_that_has_gone_on_is_not_waited_for(meet):
    waits = []

    def goes_on(one: Meeting, answers: list[Any]) -> None:
        one.go_on()
        while not answers:  # As one that waits for the first one's gradients.
            waits.append(one._is_over.wait(0.005))

    assert meet(asks, goes_on) == [False]
    assert waits


def test_ranks_that_are_restarted_meet_anew(meet):
    """In the store that torchrun keeps, with what was said there."""
    assert meet(asks, asks_one_point_later) == [False, False]
    assert meet(asks, asks) == [True, True]


def test_a_rank_that_never_comes_is_not_waited_for_without_end(monkeypatch):
    """It was killed, and nothing ends the others."""
    store = td.HashStore()
    store.set_timeout(timedelta(seconds=0.1))
    monkeypatch.setattr(td.distributed_c10d, "_get_default_store", lambda: store)
    monkeypatch.setattr("hookexp.dist.world_size", lambda: 2)
    monkeypatch.setattr("hookexp.dist.broadcast", lambda value: value)
    with Meeting() as one, pytest.raises(RuntimeError, match="a rank has not come"):
        one.all_ask()

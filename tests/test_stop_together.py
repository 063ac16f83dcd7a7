"""How often ranks tell each other whether to stop; that they do is in hooks/test_ranks_agree.py."""

from __future__ import annotations

import pytest

from hookexp import stop_together
from hookexp.state import RunState
from hookexp.stop_together import StopTogether, Together


class Ranks:
    """Two ranks, of which the other one tells what is set here; a call takes `seconds`."""

    def __init__(self, monkeypatch, seconds):
        self.other = (0, "", 1000)
        self.now, self.calls, self.told_at = 0.0, 0, []
        self.seconds = seconds
        monkeypatch.setattr(stop_together, "monotonic", lambda: self.now)
        monkeypatch.setattr(stop_together.dist, "world_size", lambda: 2)
        monkeypatch.setattr(stop_together.dist, "gather", self.gather)

    def gather(self, value):
        self.told_at.append(self.calls)
        return [value, self.other]

    def call(self, together, times):
        for _ in range(times):
            self.calls += 1
            self.now += self.seconds
            together.look()


@pytest.mark.parametrize(
    ("seconds", "told_at"),
    [
        (10.0, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        (0.1, [1, 3, 7, 12, 17]),
        (0.001, [1, 3, 7, 15, 31, 63, 127, 255, 455, 655]),
    ],
)
def test_about_twice_a_second_and_never_later_than_two_hundred(monkeypatch, seconds, told_at):
    ranks = Ranks(monkeypatch, seconds)
    ranks.call(StopTogether(RunState(is_alone=False)), told_at[-1])
    assert ranks.told_at == told_at


def test_the_least_that_a_rank_wants_is_what_all_do(monkeypatch):
    ranks = Ranks(monkeypatch, 0.001)
    ranks.other = (0, "", 3)
    ranks.call(StopTogether(RunState(is_alone=False)), 10)
    assert ranks.told_at == [1, 3, 6, 9]


def test_no_more_often_than_the_rank_with_the_fewest_batches_calls(monkeypatch):
    ranks = Ranks(monkeypatch, 10.0)
    together = StopTogether(RunState(is_alone=False))
    monkeypatch.setattr(stop_together.dist, "gather", lambda number: [number, 3])
    together.begin(5)
    monkeypatch.setattr(stop_together.dist, "gather", ranks.gather)
    ranks.call(together, 5)
    assert ranks.told_at == [1, 2, 3]


def test_ranks_that_called_differently_often_are_together_again_in_the_next_evaluation(monkeypatch):
    ranks = Ranks(monkeypatch, 0.1)
    together = StopTogether(RunState(is_alone=False))
    for num_calls in (5, 6):
        monkeypatch.setattr(stop_together.dist, "gather", lambda number: [number, 3])
        together.begin(num_calls)
        monkeypatch.setattr(stop_together.dist, "gather", ranks.gather)
        ranks.calls, ranks.told_at = 0, []
        ranks.call(together, num_calls)
        assert ranks.told_at == [1, 3]


def test_what_another_rank_has_been_sent_is_this_ones_too(monkeypatch):
    ranks, state = Ranks(monkeypatch, 10.0), RunState(is_alone=False)
    ranks.other = (143, "SIGTERM", 1)
    ranks.call(StopTogether(state), 1)
    assert (state.exit_code, state.stop_reason, state.stop_is_urgent) == (143, "SIGTERM", True)


def test_what_is_told_at_once_makes_the_next_time_no_later(monkeypatch):
    """Saves that all ask for in each iteration of a tenth of a second; the twice a second stays."""
    ranks = Ranks(monkeypatch, 0.1)
    together = Together()
    for _ in range(20):
        ranks.calls, ranks.now = ranks.calls + 1, ranks.now + ranks.seconds
        together.tell(0, "", at_once=True)
    ranks.told_at = []
    for _ in range(20):
        ranks.calls, ranks.now = ranks.calls + 1, ranks.now + ranks.seconds
        together.tell(0, "")
    assert ranks.told_at[0] - 20 <= 5

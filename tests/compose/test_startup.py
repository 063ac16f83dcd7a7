"""The collector rests while a run is put together, and what it left out is given back later."""

from __future__ import annotations

import gc

import pytest

from hookexp.compose.isolation import restored_process_state
from hookexp.compose.startup import collector_paused, resume_collector
from hookexp.hook import Hook

SEEN = []


class Look(Hook):
    def __init__(self):
        SEEN.append(("built", gc.isenabled(), gc.get_freeze_count() > 0))

    def before_run(self, runner):
        SEEN.append(("runs", gc.isenabled(), gc.get_freeze_count() > 0))


def test_a_run_is_built_without_collecting_and_runs_with_it(cli):
    SEEN.clear()
    words = ["trainer.max_iters=1", "trainer.device=cpu", "data.val=null", "sinks=none"]
    assert cli(*words, "hooks=-checkpoint", f"+hooks.look._target_={__name__}.Look").code == 0
    assert SEEN == [("built", False, False), ("runs", True, True)]
    assert gc.isenabled() and gc.get_freeze_count() == 0


def test_the_collector_comes_back_after_an_error():
    with pytest.raises(RuntimeError), collector_paused():
        assert not gc.isenabled()
        raise RuntimeError
    assert gc.isenabled()


def test_who_has_switched_it_off_finds_it_so():
    gc.disable()
    try:
        with collector_paused():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()


def test_the_next_job_of_a_sweep_begins_with_nothing_left_out():
    with restored_process_state():
        resume_collector()
        assert gc.get_freeze_count() > 0
    assert gc.get_freeze_count() == 0

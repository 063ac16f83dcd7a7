"""A resumed run says what its results depend on that is not as it was."""

from __future__ import annotations

import pytest
import torch

from hookexp.checkpoint.arithmetic import arithmetic_of, what_differs
from hookexp.hooks.checkpoint import CheckpointHook


@pytest.fixture
def resumed(make_runner, tmp_path, caplog):
    """What is told by a run that is resumed, once something was changed in between."""

    def run(change):
        make_runner({"checkpoint": CheckpointHook()}, work_dir=tmp_path, max_epochs=1).run("train")
        change()
        more = {"max_epochs": 2, "resume": "auto"}
        runner = make_runner({"checkpoint": CheckpointHook()}, work_dir=tmp_path, **more)
        caplog.clear()
        runner.run("train")
        return [one.message for one in caplog.records if one.levelname == "WARNING"]

    return run


def test_another_number_of_threads_is_told_with_what_to_type(resumed):
    now = torch.get_num_threads()
    try:
        told = resumed(lambda: torch.set_num_threads(now + 1))
    finally:
        torch.set_num_threads(now)
    assert told == [
        f"computes with threads {now + 1} (was {now}), so the last bits of results may not be "
        f"those of a run never stopped; OMP_NUM_THREADS={now} sets as many"
    ]


def test_nothing_is_told_where_all_is_as_before(resumed):
    assert resumed(lambda: None) == []


def test_another_device_and_another_version_are_told():
    then = {"torch": "2.6.0", "device": "cuda", "GPU": "NVIDIA H100", "cuDNN": 91000}
    now = arithmetic_of(torch.device("cpu"))
    told = what_differs(then, now)
    assert told.startswith(f"torch {torch.__version__} (was 2.6.0), device cpu (was cuda), so the")


def test_a_checkpoint_that_does_not_say_is_not_doubted():
    assert what_differs({}, arithmetic_of(torch.device("cpu"))) == ""

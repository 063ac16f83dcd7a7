from __future__ import annotations

import importlib
import inspect
import logging
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from omegaconf import OmegaConf

from hookexp.sink import LogPoint, Sink
from hookexp.sink_list import SinkList

POINT = LogPoint("train", epoch=1, iter=10, batch=10, num_batches=57)


CONF = Path(__file__).parents[1] / "conf/sinks"


class RecordingSink(Sink):
    """Notes every call; raises in those named in `fails_in`."""

    def __init__(self, *fails_in: str) -> None:
        self.calls: list[str] = []
        self.arguments: list[tuple[object, ...]] = []
        self._fails_in = fails_in

    def _note(self, name: str, *arguments: object) -> None:
        self.calls.append(name)
        self.arguments.append(arguments)
        if name in self._fails_in:
            raise OSError("no space left")

    def open(self, runner):
        self._note("open", runner)

    def log_config(self, config):
        self._note("log_config", config)

    def log_scalars(self, scalars, step, point):
        self._note("log_scalars", scalars, step, point)

    def log_image(self, name, image, step):
        self._note("log_image", name, image, step)

    def log_artifact(self, name, path, step):
        self._note("log_artifact", name, path, step)

    def close(self):
        self._note("close")


@pytest.fixture
def run():
    return SimpleNamespace(rank=0, logger=logging.getLogger("hookexp"))


def use_all(sinks: Sink, run: object) -> None:
    sinks.open(run)
    sinks.log_config({"name": "digits"})
    sinks.log_scalars({"loss": 0.5}, 10, POINT)
    sinks.log_image("grid", torch.zeros(3, 2, 2, dtype=torch.uint8), 10)
    sinks.log_artifact("sample", Path("sample.txt"), 10)
    sinks.close()


def test_every_method_reaches_every_sink_with_its_arguments(run):
    first, second, direct = RecordingSink(), RecordingSink(), RecordingSink()
    use_all(SinkList({"first": first, "second": second}), run)
    use_all(direct, run)

    assert first.calls == second.calls == direct.calls
    assert first.calls == [
        *("open", "log_config", "log_scalars", "log_image", "log_artifact", "close")
    ]
    for given, expected in zip(first.arguments, direct.arguments, strict=True):
        assert str(given) == str(expected)


def test_a_failing_sink_is_named_once_and_the_others_go_on(run, caplog):
    good = RecordingSink()
    sinks = SinkList({"tensorboard": RecordingSink("log_scalars"), "jsonl": good})
    sinks.open(run)
    for _ in range(3):
        sinks.log_scalars({"loss": 0.5}, 10, POINT)

    (message,) = caplog.messages
    assert "sink 'tensorboard' failed" in message
    assert "OSError: no space left" in message
    assert "sinks=-tensorboard" in message
    assert good.calls.count("log_scalars") == 3


def test_a_sink_that_fails_is_called_again_and_its_gaps_are_counted_at_the_end(run, caplog):
    failing = RecordingSink("log_scalars")
    sinks = SinkList({"jsonl": failing})
    sinks.open(run)
    for _ in range(3):
        sinks.log_scalars({"loss": 0.5}, 10, POINT)
    sinks.close()

    assert failing.calls.count("log_scalars") == 3
    assert "sink 'jsonl' failed 3 times" in caplog.messages[-1]


def test_a_sink_that_cannot_be_opened_is_left_alone_but_closed(run, caplog):
    failing, good = RecordingSink("open"), RecordingSink()
    use_all(SinkList({"wandb": failing, "jsonl": good}), run)

    assert failing.calls == ["open", "close"]
    assert len(good.calls) == 6
    (message,) = caplog.messages
    assert "sink 'wandb' could not be opened" in message
    assert "sinks=-wandb" in message


def test_close_closes_all_even_if_the_first_fails(run, caplog):
    good = RecordingSink()
    use_all(SinkList({"wandb": RecordingSink("close"), "jsonl": good}), run)

    assert good.calls[-1] == "close"
    assert "sink 'wandb' failed" in caplog.text


def test_ctrl_c_is_not_a_failure_of_a_sink(run):
    class Interrupted(Sink):
        def log_scalars(self, scalars, step, point):
            raise KeyboardInterrupt

    sinks = SinkList({"console": Interrupted()})
    sinks.open(run)
    with pytest.raises(KeyboardInterrupt):
        sinks.log_scalars({"loss": 0.5}, 10, POINT)


def test_other_ranks_open_and_write_nothing(run):
    run.rank = 1
    sink = RecordingSink()
    use_all(SinkList({"jsonl": sink}), run)

    assert sink.calls == []


def test_what_nobody_has_opened_is_not_closed(run):
    sink = RecordingSink()
    SinkList({"jsonl": sink}).close()
    assert sink.calls == []


def test_the_list_can_be_opened_again(run):
    sink = RecordingSink()
    sinks = SinkList({"jsonl": sink})
    use_all(sinks, run)
    use_all(sinks, run)

    assert sink.calls.count("log_scalars") == 2


def test_only_batches_of_an_evaluation_are_progress():
    assert LogPoint("val", 1, 57, 2, 5).is_progress
    assert not LogPoint("val", 1, 57, 5, 5, is_result=True).is_progress
    assert not POINT.is_progress


@pytest.mark.parametrize("stem", sorted(path.name for path in CONF.iterdir() if path.is_dir()))
def test_the_config_of_a_sink_shows_every_parameter_with_its_default(stem):
    path = CONF / stem / "default.yaml"
    values = OmegaConf.to_container(OmegaConf.load(path))
    module, _, name = values.pop("_target_").rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), name)).parameters
    defaults = {key: parameter.default for key, parameter in parameters.items()}

    assert module == f"hookexp.sinks.{stem}"
    assert list(values) == list(defaults)
    for key, value in values.items():
        assert value == defaults[key] or not (value or defaults[key])
    assert path.read_text().startswith("# ")

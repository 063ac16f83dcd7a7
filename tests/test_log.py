from __future__ import annotations

import io
import logging
import logging.config
import sys
import warnings
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from hookexp.log import FILE_ONLY, ConsoleHandler, FileFormatter

JOB_LOGGING = Path(__file__).parents[1] / "conf/hydra/job_logging/hookexp.yaml"


@pytest.fixture
def logger():
    logger = logging.Logger("hookexp.test_log", logging.DEBUG)
    logger.addHandler(ConsoleHandler())
    return logger


def test_messages_are_plain_and_warnings_say_so(logger, capsys):
    logger.info("epoch %d", 3)
    logger.warning("slow")

    assert capsys.readouterr().out == "epoch 3\nWARNING: slow\n"


def test_a_traceback_is_shown(logger, capsys):
    try:
        raise RuntimeError("broken")
    except RuntimeError:
        logger.exception("the run failed")

    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ERROR: the run failed"
    assert lines[-1] == "RuntimeError: broken"


def test_stdout_is_looked_up_at_each_message(logger, monkeypatch):
    first, second = io.StringIO(), io.StringIO()
    for stream in (first, second):
        monkeypatch.setattr(sys, "stdout", stream)
        logger.info("hello")

    assert first.getvalue() == second.getvalue() == "hello\n"


def test_file_only_messages_are_not_shown(logger, capsys):
    logger.info("a line of numbers", extra=FILE_ONLY)
    logger.info("a message")

    assert capsys.readouterr().out == "a message\n"


def test_a_reader_that_has_gone_ends_the_output_and_nothing_else(logger, monkeypatch, capsys):
    class ClosedPipe(io.StringIO):
        num_writes = 0

        def write(self, text):
            self.num_writes += 1
            raise BrokenPipeError

    pipe = ClosedPipe()
    monkeypatch.setattr(sys, "stdout", pipe)
    logger.info("one")
    logger.error("two")

    assert pipe.num_writes == 1
    assert capsys.readouterr().err == ""


@pytest.fixture
def job_logging(tmp_path):
    """The config group's file in force, as Hydra puts it there."""
    root = logging.getLogger()
    before = root.handlers[:], root.level
    config = OmegaConf.create(
        {
            "hydra": {"runtime": {"output_dir": str(tmp_path)}, "job": {"name": "digits"}},
            "job_logging": OmegaConf.load(JOB_LOGGING),
        }
    )
    logging.config.dictConfig(OmegaConf.to_container(config.job_logging, resolve=True))
    yield tmp_path / "digits.log"
    for handler in root.handlers:
        handler.close()
    root.handlers[:], root.level = before


def test_the_job_logging_file_shows_short_messages_and_keeps_complete_ones(job_logging, capsys):
    logger = logging.getLogger("hookexp")
    logger.info("a message with a ≤ sign")
    logger.info("numbers", extra=FILE_ONLY)
    logger.debug("details")

    assert capsys.readouterr().out == "a message with a ≤ sign\n"
    lines = job_logging.read_text(encoding="utf-8").splitlines()
    assert [line.split(" ", 2)[2] for line in lines] == [
        "INFO hookexp: a message with a ≤ sign",
        "INFO hookexp: numbers",
    ]


@pytest.mark.parametrize("later", [0.0, 0.25, 1.0, 3600.5, -2.0])
def test_the_file_has_the_time_of_each_message(later):
    formatter = FileFormatter()
    for created in (1_790_000_000.0625, 1_790_000_000.0625 + later):
        record = logging.makeLogRecord(
            {"created": created, "msecs": created % 1 * 1000, "msg": "a", "levelname": "INFO"}
        )
        pythons = logging.Formatter().formatTime(record)
        assert formatter.format(record) == f"{pythons} INFO None: a"


def test_captured_warnings_reach_the_file_and_end_without_an_empty_line(job_logging, capsys):
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            warnings.warn("an old API was used", stacklevel=1)
    finally:
        logging.captureWarnings(False)

    assert "an old API was used" in job_logging.read_text()
    out = capsys.readouterr().out
    assert out.startswith("WARNING: ")
    assert not out.endswith("\n\n")

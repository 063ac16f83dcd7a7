from __future__ import annotations

import io
import logging
import math
import re
import subprocess
import sys

import pytest

from hookexp.log import ConsoleHandler
from hookexp.sink import LogPoint
from hookexp.sinks.console import ConsoleSink, ProgressLine, format_row

ROW = {
    "loss": 0.12345,
    "lr": 0.01,
    "eta": 12.4,
    "time": 0.0123,
    "data_time": 0.0004,
    "memory": 123.0,
}
RESULT = {"accuracy": 0.97, "loss": 0.25}


def train(batch=10, epoch=1, num_batches=57):
    return LogPoint("train", epoch, (epoch - 1) * 57 + batch, batch, num_batches)


def val(batch=5, is_result=True):
    return LogPoint("val", 1, 57, batch, 5, is_result)


# -- a line of text ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "by_epoch", "max_iters", "place"),
    [
        (train(), True, None, "Epoch(train) [1][10/57]"),
        (train(num_batches=None), True, None, "Epoch(train) [1][10/?]"),
        (val(), True, None, "Epoch(val) [1][5/5]"),
        (LogPoint("test", 1, 57, 5, 5, True), True, None, "Epoch(test) [5/5]"),
        (LogPoint("train", 1, 10, 10, None), False, 500, "Iter(train) [10/500]"),
        (val(), False, 500, "Iter(val) [57][5/5]"),
        (LogPoint("test", 1, 57, 5, 5, True), False, 500, "Iter(test) [5/5]"),
    ],
)
def test_where_a_line_was_measured(point, by_epoch, max_iters, place):
    assert format_row({"loss": 0.25}, point, by_epoch, max_iters) == f"{place}  loss: 0.2500"


def test_a_line_is_in_the_published_order_and_format():
    assert format_row(ROW, train(), True, None) == (
        "Epoch(train) [1][10/57]  lr: 1.0000e-02  eta: 0:00:12  time: 0.0123  data_time: 0.0004"
        "  memory: 123  loss: 0.1235"
    )


def test_a_result_keeps_its_order():
    assert format_row({"accuracy": 0.97, "time": 0.01}, val(), True, None) == (
        "Epoch(val) [1][5/5]  accuracy: 0.9700  time: 0.0100"
    )


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [
        ("lr/1", 0.5, "5.0000e-01"),
        ("loss", 0.0, "0.0000"),
        ("loss", 2.5e-5, "2.5000e-05"),
        ("loss", math.nan, "nan"),
        ("lr", math.inf, "inf"),
        ("memory", math.nan, "nan"),
        ("eta", 3661.0, "1:01:01"),
        ("eta", 90_000.0, "25:00:00"),
        ("eta", math.inf, "?"),
        ("eta", math.nan, "?"),
    ],
)
def test_a_value_is_shown_as_its_kind_asks_for(key, value, shown):
    assert format_row({key: value}, train(), True, None).endswith(f"  {key}: {shown}")


def test_without_a_terminal_every_row_is_a_message(make_run, caplog):
    caplog.set_level(logging.INFO)
    sink = ConsoleSink()
    sink.open(make_run())
    sink.log_scalars(ROW, 10, train())
    sink.log_scalars(RESULT, 1, val())
    sink.close()

    assert [message.split("  ")[0] for message in caplog.messages] == [
        "Epoch(train) [1][10/57]",
        "Epoch(val) [1][5/5]",
    ]


# -- the live line ----------------------------------------------------------------------------


class Terminal(io.StringIO):
    """A terminal's end of the output: knows what a reader would see."""

    encoding = "utf-8"

    def isatty(self):
        return True

    def attach(self):
        """Become stdout; in a test's body, since pytest sets stdout between fixtures and test."""
        self.monkeypatch.setattr(sys, "stdout", self)

    def screen(self):
        """The lines on the screen, after the control sequences that rich uses for one live line."""
        lines, row, column = [""], 0, 0
        for match in re.finditer(r"\x1b\[([?\d;]*)([a-zA-Z])|(.|\n)", self.getvalue()):
            number, command, character = match.groups()
            if command == "K":
                lines[row] = ""
            elif command == "A":
                row -= int(number or 1)
            elif character == "\n":
                row, column = row + 1, 0
                lines += [""] * (row + 1 - len(lines))
            elif character == "\r":
                column = 0
            elif character:
                lines[row] = lines[row].ljust(column)[:column] + character
                column += 1
        return [line for line in lines if line]


@pytest.fixture
def terminal(monkeypatch):
    terminal = Terminal()
    terminal.monkeypatch = monkeypatch
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "100")
    for name in ("NO_COLOR", "FORCE_COLOR", "TTY_COMPATIBLE", "TTY_INTERACTIVE"):
        monkeypatch.delenv(name, raising=False)
    return terminal


@pytest.fixture
def logger(tmp_path):
    logger = logging.Logger("hookexp.test_console", logging.INFO)
    logger.addHandler(ConsoleHandler())
    log_file = logging.FileHandler(tmp_path / "run.log")
    logger.addHandler(log_file)
    yield logger
    log_file.close()


def test_in_a_terminal_results_and_messages_stand_above_one_progress_line(
    make_run, terminal, logger, tmp_path
):
    terminal.attach()
    sink = ConsoleSink(refresh_per_second=1e9)
    sink.open(make_run(logger=logger))
    sink.log_scalars({**ROW, "loss": 0.75}, 10, train(10))
    logger.warning("gradients are large")
    sink.log_scalars({**ROW, "loss": 0.5}, 20, train(20))
    print("a print")
    sink.log_scalars({"time": 0.1}, 1, val(2, is_result=False))
    assert terminal.screen()[-1].startswith("epoch 1/2  val 2/5  ━")
    sink.log_scalars(RESULT, 1, val())
    assert terminal.screen()[-1].startswith("epoch 1/2  ━")
    sink.log_scalars({**ROW, "loss": 0.25}, 57, train(57))
    sink.close()
    print("after")

    *above, progress, after = terminal.screen()
    assert above == [
        "WARNING: gradients are large",
        "a print",
        "Epoch(val) [1][5/5]  accuracy: 0.9700  loss: 0.2500",
    ]
    bar = "━" * 15 + "─" * 15
    assert progress == (f"epoch 1/2  {bar}  50%  loss 0.2500  lr 1.0e-02  81.3 it/s  eta 0:00:12")
    assert after == "after"
    in_the_file = (tmp_path / "run.log").read_text().splitlines()
    assert [line for line in in_the_file if "train" in line][-1].endswith("loss: 0.2500")
    assert len(in_the_file) == 6


def test_the_terminal_is_given_back_also_after_an_exception(make_run, terminal, logger):
    terminal.attach()
    sink = ConsoleSink()
    sink.open(make_run(logger=logger))
    with pytest.raises(KeyboardInterrupt):
        try:
            sink.log_scalars(ROW, 10, train())
            assert sys.stdout is not terminal
            raise KeyboardInterrupt
        finally:
            sink.close()
            sink.close()

    assert sys.stdout is terminal
    assert terminal.getvalue().endswith("\x1b[?25h")


def test_the_cursor_is_never_left_hidden_so_that_a_killed_run_leaves_it(make_run, terminal, logger):
    terminal.attach()
    sink = ConsoleSink()
    sink.open(make_run(logger=logger))
    sink.log_scalars(ROW, 10, train())
    written = terminal.getvalue()
    sink.close()

    assert written.rfind("\x1b[?25h") > written.rfind("\x1b[?25l")


def test_redraws_are_bounded_and_the_last_row_is_drawn_at_the_end(make_run, terminal, logger):
    terminal.attach()
    sink = ConsoleSink(refresh_per_second=1e-6)
    sink.open(make_run(logger=logger))
    for batch in range(1, 58):
        sink.log_scalars(ROW, batch, train(batch))
    num_redraws = terminal.getvalue().count("epoch 1/2")
    sink.close()

    assert num_redraws == 1
    assert " 50%" in terminal.screen()[-1]


def test_the_line_ends_full_though_the_last_batches_had_no_row(make_run, terminal, logger):
    terminal.attach()
    sink = ConsoleSink(refresh_per_second=1e9)
    sink.open(make_run(logger=logger))
    sink.log_scalars(ROW, 107, train(50, epoch=2))
    sink.log_scalars(RESULT, 2, LogPoint("val", 2, 114, 5, 5, is_result=True))
    sink.close()

    assert " 100%" in terminal.screen()[-1]
    assert "eta" not in terminal.screen()[-1]


def test_without_a_validation_the_line_ends_where_the_run_does(make_run, terminal, logger):
    terminal.attach()
    run = make_run(logger=logger)
    sink = ConsoleSink(refresh_per_second=1e9)
    sink.open(run)
    sink.log_scalars(ROW, 107, train(50, epoch=2))
    run.iter = 114
    sink.close()

    assert " 100%" in terminal.screen()[-1]
    assert "eta" not in terminal.screen()[-1]


def test_the_line_stays_where_batches_of_a_later_epoch_had_no_row(make_run, terminal, logger):
    terminal.attach()
    run = make_run(logger=logger)
    sink = ConsoleSink(refresh_per_second=1e9)
    sink.open(run)
    sink.log_scalars(ROW, 50, train(50))
    run.iter = 60
    sink.close()

    assert terminal.screen()[-1].startswith("epoch 1/2")
    assert " 44%" in terminal.screen()[-1]


@pytest.mark.parametrize("name", ["NO_COLOR", "TERM"])
def test_without_colours_the_line_is_the_same(make_run, terminal, logger, monkeypatch, name):
    monkeypatch.setenv(name, {"NO_COLOR": "1", "TERM": "dumb"}[name])
    terminal.attach()
    sink = ConsoleSink(live=True, refresh_per_second=1e9)
    sink.open(make_run(logger=logger))
    sink.log_scalars(ROW, 10, train())
    sink.close()

    assert terminal.screen()[-1].startswith("epoch 1/2  ")
    assert not re.search(r"\x1b\[3[0-9]", terminal.getvalue())


def test_a_narrow_terminal_gets_one_line_too(make_run, terminal, logger, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    terminal.attach()
    sink = ConsoleSink(refresh_per_second=1e9)
    sink.open(make_run(logger=logger))
    for batch in range(1, 58):
        sink.log_scalars(ROW, batch, train(batch))
    sink.close()

    (progress,) = terminal.screen()
    assert len(progress) <= 40
    assert progress.startswith("epoch 1/2") and "50%" in progress


_ONE_RUN = """
import logging, random
from types import SimpleNamespace
from hookexp.sink import LogPoint
from hookexp.sinks.console import ConsoleSink
random.seed(7)
before = random.getstate()
sink = ConsoleSink(live=True, refresh_per_second=1e9)
logger = logging.getLogger("hookexp")
sink.open(SimpleNamespace(logger=logger, max_epochs=2, max_iters=None, by_epoch=True, iter=57))
for batch in range(1, 51):
    sink.log_scalars({"loss": 1.0}, batch, LogPoint("train", 1, batch, batch, 57))
sink.close()
print("\\nsame" if random.getstate() == before else "drawn from")
"""


def test_a_live_display_draws_nothing_from_pythons_generator():
    result = subprocess.run([sys.executable, "-c", _ONE_RUN], capture_output=True, text=True)

    assert result.stderr == ""
    assert result.stdout.splitlines()[-1] == "same"


def test_a_test_alone_leaves_its_result_alone(make_run, terminal, logger):
    terminal.attach()
    sink = ConsoleSink(refresh_per_second=1e9)
    sink.open(make_run(logger=logger))
    sink.log_scalars({"time": 0.1}, 0, LogPoint("test", 1, 0, 10, 20))
    assert terminal.screen()[-1].startswith("test 10/20  ━")
    sink.log_scalars(RESULT, 0, LogPoint("test", 1, 0, 20, 20, is_result=True))
    sink.close()
    print("after")

    assert terminal.screen() == ["Epoch(test) [20/20]  accuracy: 0.9700  loss: 0.2500", "after"]


def test_a_run_without_rows_draws_nothing(make_run, terminal, logger):
    terminal.attach()
    sink = ConsoleSink()
    sink.open(make_run(logger=logger))
    sink.close()

    assert terminal.getvalue() == ""


@pytest.mark.parametrize(("live", "term"), [(False, "xterm"), (None, "dumb")])
def test_plain_lines_in_a_terminal(make_run, terminal, logger, monkeypatch, live, term):
    terminal.attach()
    monkeypatch.setenv("TERM", term)
    sink = ConsoleSink(live=live)
    sink.open(make_run(logger=logger))
    sink.log_scalars(ROW, 10, train())
    sink.close()

    assert terminal.getvalue() == format_row(ROW, train(), True, None) + "\n"


def draw(line, width, encoding="utf-8"):
    from rich.console import Console

    class File(io.StringIO):
        pass

    file = File()
    File.encoding = encoding
    Console(file=file, width=width).print(line)
    return file.getvalue()


@pytest.mark.parametrize("width", [5, 12, 20, 30, 40, 60, 80, 200])
def test_the_line_fits_whatever_the_width(width):
    line = ProgressLine(by_epoch=True, max_epochs=20, max_iters=None)
    line.show(ROW, train())
    text = draw(line, width)

    assert "\n" not in text.rstrip("\n")
    assert len(text) <= width - 3
    assert text.startswith("epoch 1/20"[: width - 3])
    assert ("loss 0.1235" in text) == (width >= 40)
    assert ("it/s" in text) == (width >= 80)


@pytest.mark.parametrize(
    ("settings", "point", "start", "percent"),
    [
        ((True, 4, None), LogPoint("train", 2, 15, 5, 10), "epoch 2/4", " 38%"),
        ((True, 4, None), LogPoint("train", 2, 15, 5, None), "epoch 2/4", None),
        ((False, None, 200), LogPoint("train", 1, 50, 50, None), "iter 50/200", " 25%"),
        ((False, None, 200), LogPoint("val", 1, 50, 1, 4), "iter 50/200  val 1/4", " 25%"),
        ((True, 4, None), LogPoint("test", 1, 0, 1, 2), "test 1/2", " 50%"),
        ((False, None, 200), LogPoint("train", 1, 300, 300, None), "iter 300/200", " 100%"),
    ],
)
def test_the_line_says_how_far_the_run_is(settings, point, start, percent):
    line = ProgressLine(*settings)
    line.show({"loss": 1.0}, point)
    text = draw(line, 80)

    assert text.startswith(start + "  ")
    assert (percent is not None) == ("%" in text)
    assert percent is None or percent in text


def test_without_unicode_the_bar_is_ascii():
    line = ProgressLine(by_epoch=False, max_epochs=None, max_iters=100)
    line.show({"loss": 1.0}, LogPoint("train", 1, 50, 50, None))

    assert "#" * 15 + "-" * 15 in draw(line, 80, "ascii")


def test_a_refresh_rate_that_cannot_be_is_an_error():
    with pytest.raises(ValueError, match=r"sinks\.console\.refresh_per_second=0"):
        ConsoleSink(refresh_per_second=0)


def test_making_sinks_imports_nothing_heavy():
    script = (
        "import sys\n"
        "from hookexp.sinks.console import ConsoleSink\n"
        "from hookexp.sinks.jsonl import JsonlSink\n"
        "from hookexp.sinks.tensorboard import TensorboardSink\n"
        "from hookexp.sinks.wandb import WandbSink\n"
        "sinks = ConsoleSink(), JsonlSink(), TensorboardSink(), WandbSink()\n"
        "heavy = {'rich', 'tensorboard', 'wandb', 'numpy', 'torch', 'yaml', 'google.protobuf'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)

    assert (result.stdout, result.stderr) == ("[]\n", "")

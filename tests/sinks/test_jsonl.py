from __future__ import annotations

import json
import math
import resource

import pytest

from hookexp.sink import LogPoint
from hookexp.sinks.jsonl import JsonlSink

TRAIN = LogPoint("train", epoch=1, iter=10, batch=10, num_batches=57)
RESULT = LogPoint("val", epoch=1, iter=57, batch=5, num_batches=5, is_result=True)


@pytest.fixture
def sink(make_run):
    sink = JsonlSink()
    sink.open(make_run())
    yield sink
    sink.close()


def read_rows(folder):
    def refuse(name):
        raise AssertionError(f"{name} is not JSON")

    text = (folder / "scalars.jsonl").read_text()
    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_rows_are_on_the_disk_without_a_close(sink, tmp_path):
    sink.log_scalars({"lr": 0.1, "loss": 0.5}, 10, TRAIN)
    sink.log_scalars({"accuracy": 0.97}, 1, RESULT)

    assert read_rows(tmp_path) == [
        {"mode": "train", "epoch": 1, "step": 10, "lr": 0.1, "loss": 0.5},
        {"mode": "val", "epoch": 1, "step": 57, "accuracy": 0.97},
    ]


def test_progress_of_an_evaluation_is_not_kept(sink, tmp_path):
    sink.log_scalars({"time": 0.1}, 1, LogPoint("val", 1, 57, 2, 5))

    assert read_rows(tmp_path) == []


def test_values_that_json_lacks_are_strings_which_float_reads(sink, tmp_path):
    values = {"a": math.nan, "b": math.inf, "c": -math.inf, "d": 1.5}
    sink.log_scalars(values, 10, TRAIN)

    (row,) = read_rows(tmp_path)
    assert [row[key] for key in "abcd"] == ["NaN", "Infinity", "-Infinity", 1.5]
    assert math.isnan(float(row["a"]))
    assert [float(row[key]) for key in "bcd"] == [math.inf, -math.inf, 1.5]


def test_the_place_of_a_row_is_its_own(sink, tmp_path):
    sink.log_scalars({"step": 9.0, "epoch": 7.0, "loss": 0.5, "mode": 3.0}, 10, TRAIN)

    (row,) = read_rows(tmp_path)
    assert row == {"mode": "train", "epoch": 1, "step": 10, "loss": 0.5}
    assert list(row)[:3] == ["mode", "epoch", "step"]


def test_opening_again_appends(make_run, tmp_path):
    for loss in (0.5, 0.25):
        sink = JsonlSink()
        sink.open(make_run())
        sink.log_scalars({"loss": loss}, 10, TRAIN)
        sink.close()

    assert [row["loss"] for row in read_rows(tmp_path)] == [0.5, 0.25]


def test_a_resume_drops_what_came_after_the_position(make_run, tmp_path):
    sink = JsonlSink()
    sink.open(make_run())
    sink.log_scalars({"loss": 1.0}, 10, TRAIN)
    state = sink.state_dict()
    sink.log_scalars({"loss": 2.0}, 10, TRAIN)
    sink.close()
    assert state["position"] < (tmp_path / "scalars.jsonl").stat().st_size

    resumed = JsonlSink()
    resumed.open(make_run())
    resumed.load_state_dict(state)
    resumed.log_scalars({"loss": 3.0}, 10, TRAIN)
    resumed.close()

    assert [row["loss"] for row in read_rows(tmp_path)] == [1.0, 3.0]


def test_a_resume_refuses_a_file_that_is_too_short(sink):
    with pytest.raises(ValueError, match=r"has 0 bytes, cannot be cut at 100"):
        sink.load_state_dict({"position": 100})


def test_a_row_that_does_not_fit_on_the_disk_leaves_no_half_line(sink, tmp_path):
    sink.log_scalars({"loss": 1.0}, 10, TRAIN)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (sink.state_dict()["position"] + 20, limit[1]))
    try:
        with pytest.raises(OSError, match="no room for a record"):
            sink.log_scalars({"loss": 2.0}, 10, TRAIN)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    sink.log_scalars({"loss": 3.0}, 10, TRAIN)

    assert [row["loss"] for row in read_rows(tmp_path)] == [1.0, 3.0]


def test_another_filename(make_run, tmp_path):
    sink = JsonlSink(filename="numbers.jsonl")
    sink.open(make_run())
    sink.close()

    assert (tmp_path / "numbers.jsonl").exists()


@pytest.mark.parametrize("filename", ["../up.jsonl", "/tmp/up.jsonl", "sub/up.jsonl", "..", ""])
def test_a_name_leads_out_of_no_folder(filename):
    with pytest.raises(ValueError, match=r"use a plain file name, such as scalars\.jsonl"):
        JsonlSink(filename)

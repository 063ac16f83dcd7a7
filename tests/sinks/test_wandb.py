from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from hookexp.sink import LogPoint
from hookexp.sinks.wandb import WandbSink

TRAIN = LogPoint("train", epoch=1, iter=10, batch=10, num_batches=57)
RESULT = LogPoint("val", epoch=1, iter=57, batch=5, num_batches=5, is_result=True)


@pytest.fixture
def no_account(monkeypatch, tmp_path):
    """A machine on which nobody has logged in to W&B."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.setenv("NETRC", str(home / "netrc"))
    monkeypatch.setenv("WANDB_ERROR_REPORTING", "false")
    yield
    if "wandb" in sys.modules:
        sys.modules["wandb"].teardown()


def messages(caplog):
    return [r.getMessage() for r in caplog.records if r.name == "hookexp"]


def read_records(path):
    """What W&B wrote: the records of a log in LevelDB's format, after a header of seven bytes.

    Source: https://github.com/google/leveldb/blob/main/doc/log_format.md
    """
    import wandb
    from wandb.proto.wandb_internal_pb2 import Record

    # W&B's own process writes the file, and may be a moment behind the end of the run.
    wandb.teardown()
    content, position, data = path.read_bytes(), 7, b""
    while position + 7 <= len(content):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        length = int.from_bytes(content[position + 4 : position + 6], "little")
        kind = content[position + 6]
        data += content[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            yield Record.FromString(data)
            data = b""


def read_rows(path):
    rows = []
    for record in read_records(path):
        if record.WhichOneof("record_type") == "history":
            items = record.history.item
            rows.append(
                {
                    item.key or "/".join(item.nested_key): json.loads(item.value_json)
                    for item in items
                }
            )
    return rows


def test_an_offline_run_holds_what_was_logged(make_run, no_account, tmp_path, capfd, caplog):
    caplog.set_level(logging.INFO, logger="hookexp")
    (tmp_path / "samples").mkdir()
    (tmp_path / "samples" / "10.txt").write_text("import this")
    sink = WandbSink(tags=["tried"])
    sink.open(make_run())
    sink.log_config({"optimizer": {"lr": 0.5}})
    sink.log_config({"optimizer": {"lr": 0.1}})
    sink.log_scalars({"loss": 0.5, "lr": 0.1}, 10, TRAIN)
    sink.log_scalars({"time": 0.1}, 1, LogPoint("val", 1, 57, 2, 5))
    sink.log_scalars({"accuracy": 0.97, "worst": float("nan")}, 1, RESULT)
    sink.log_image("grid", torch.zeros(3, 4, 5, dtype=torch.uint8), 1)
    sink.log_artifact("sample", tmp_path / "samples" / "10.txt", 10)
    run_id = sink.run_id
    sink.close()
    sink.close()

    (folder,) = tmp_path.glob("wandb/offline-run-*")
    path = folder / f"run-{run_id}.wandb"
    first, second = read_rows(path)
    assert (first["_step"], first["train/loss"], first["train/lr"]) == (10, 0.5, 0.1)
    assert (second["_step"], second["val/accuracy"], second["epoch"]) == (57, 0.97, 1)
    assert "val/time" not in second
    assert any(key.startswith("grid") for key in second)

    (start,) = (r.run for r in read_records(path) if r.WhichOneof("record_type") == "run")
    assert (start.project, start.display_name, list(start.tags)) == ("hookexp", "digits", ["tried"])
    configs = [r.config for r in read_records(path) if r.WhichOneof("record_type") == "config"]
    assert any("0.1" in u.value_json for c in configs for u in c.update if u.key == "optimizer")
    assert (folder / "files" / "samples" / "10.txt").read_text() == "import this"

    (message,) = messages(caplog)
    assert "no API key was found" in message
    assert f"wandb sync {folder}" in message
    assert capfd.readouterr() == ("", "")


def test_a_run_that_goes_on_continues_the_one_of_its_folder(make_run, no_account, monkeypatch):
    import wandb

    asked = []
    begin = wandb.init

    def init(**arguments):
        asked.append((arguments["id"], arguments["resume"]))
        return begin(**arguments)

    monkeypatch.setattr(wandb, "init", init)
    ids = []
    for _ in range(2):
        sink = WandbSink(mode="offline")
        sink.open(make_run())
        ids.append(sink.run_id)
        sink.close()
    assert ids[0] == ids[1]
    assert asked == [(None, None), (ids[0], "allow")]


def test_the_environment_holds_where_the_config_is_silent(
    make_run, no_account, monkeypatch, tmp_path, caplog
):
    caplog.set_level(logging.INFO, logger="hookexp")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(elsewhere))
    monkeypatch.setenv("WANDB_PROJECT", "theirs")
    sink = WandbSink(id="abc123", name="mine")
    sink.open(make_run())
    sink.close()

    (path,) = elsewhere.glob("wandb/offline-run-*/run-abc123.wandb")
    (start,) = (r.run for r in read_records(path) if r.WhichOneof("record_type") == "run")
    assert (start.project, start.display_name) == ("theirs", "mine")
    assert not (tmp_path / "wandb").exists()
    (message,) = messages(caplog)
    assert "API key" not in message


def test_disabled_writes_nothing(make_run, no_account, tmp_path, caplog):
    caplog.set_level(logging.INFO, logger="hookexp")
    sink = WandbSink(mode="disabled")
    sink.open(make_run())
    sink.log_scalars({"loss": 0.5}, 10, TRAIN)
    sink.close()

    assert not (tmp_path / "wandb").exists()
    assert messages(caplog) == []


def test_online_is_asked_for_where_there_is_a_key(make_run, no_account, monkeypatch, tmp_path):
    """The server is a closed port: that W&B tries it shows that the run is not made offline."""
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    sink = WandbSink(settings={"init_timeout": 1})
    with pytest.raises(Exception, match=r"127\.0\.0\.1:9"):
        sink.open(make_run())
    sink.close()


def test_a_process_that_logged_ends_by_itself_and_quietly(no_account, tmp_path):
    script = """
        import logging
        from pathlib import Path
        from types import SimpleNamespace
        from hookexp.sink import LogPoint
        from hookexp.sinks.wandb import WandbSink

        sink = WandbSink()
        logger = logging.getLogger("hookexp")
        sink.open(SimpleNamespace(work_dir=Path.cwd(), logger=logger, experiment_name="digits"))
        sink.log_scalars({"loss": 0.5}, 10, LogPoint("train", 1, 10, 10, 57))
        raise RuntimeError("nobody closed the sink")
    """
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(Path.cwd())},
        capture_output=True,
        text=True,
        timeout=60,
    )

    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.splitlines()[-1] == "RuntimeError: nobody closed the sink"
    (path,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    assert [row["train/loss"] for row in read_rows(path)] == [0.5]


def test_a_mode_that_does_not_exist_is_an_error():
    with pytest.raises(ValueError, match=r"sinks\.wandb\.mode=of: use online, offline, disabled"):
        WandbSink(mode="of")

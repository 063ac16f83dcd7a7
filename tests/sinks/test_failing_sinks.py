"""Sinks that fail under a real run: one warning, and training goes on to its end."""

from __future__ import annotations

import logging
import shutil

import pytest
from test_wandb import no_account, read_records  # noqa: F401  (a fixture)

from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.logger import LoggerHook
from hookexp.sinks.jsonl import JsonlSink
from hookexp.sinks.tensorboard import TensorboardSink
from hookexp.sinks.wandb import WandbSink


class At(Hook):
    def __init__(self, iteration, do):
        self.iteration, self.do = iteration, do

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.iteration:
            self.do(runner)


@pytest.fixture
def run(make_runner, tmp_path):
    def run(sinks, hooks=None, **more):
        saving = CheckpointHook(async_save=False)
        hooks = {"logger": LoggerHook(interval=1), "checkpoint": saving, **(hooks or {})}
        return make_runner(hooks, work_dir=tmp_path / "run", sinks=sinks, max_epochs=2, **more)

    return run


@pytest.fixture
def warned(caplog):
    caplog.set_level(logging.WARNING, "hookexp")

    def warned():
        records = [r for r in caplog.records if r.name == "hookexp"]
        return [r.getMessage() for r in records if r.levelno >= logging.WARNING]

    return warned


@pytest.mark.parametrize("what", ["the files", "the folder"])
def test_a_deleted_log_is_told_once_and_the_run_goes_on(run, warned, what):
    def delete(runner):
        if what == "the folder":
            shutil.rmtree(runner.work_dir)
        else:
            for path in [*runner.work_dir.glob("*tfevents*"), *runner.work_dir.glob("*.jsonl")]:
                path.unlink()

    runner = run({"tensorboard": TensorboardSink(), "jsonl": JsonlSink()}, {"do": At(4, delete)})
    assert runner.run("train").status == "finished"
    assert (runner.work_dir / "epoch_2.pth").exists()
    for name in ("tensorboard", "jsonl"):
        lines = [line for line in warned() if f"'{name}'" in line]
        assert "failed, the run goes on (this is said once): FileNotFoundError" in lines[0]
        assert "was deleted. To do without it: sinks=-" in lines[0]
        assert len(lines) == 2 and "what it holds of this run has gaps" in lines[1]


def test_wandb_offline_continues_its_run(run, no_account, tmp_path):  # noqa: F811
    def stop(runner):
        runner.state.stop("told to", urgent=True)

    first = run({"wandb": WandbSink(mode="offline")}, {"stop": At(3, stop)})
    first.run("train")
    rest = run({"wandb": WandbSink(mode="offline")}, resume="auto")
    rest.run("train")
    run_id = first.sinks.sinks["wandb"].run_id
    assert rest.sinks.sinks["wandb"].run_id == run_id
    paths = sorted((tmp_path / "run").glob(f"wandb/offline-run-*/run-{run_id}.wandb"))
    assert len(paths) == len(list((tmp_path / "run").glob("wandb/offline-run-*"))) == 2
    steps = [
        next(item.value_json for item in record.history.item if "_step" in str(item))
        for path in paths
        for record in read_records(path)
        if record.WhichOneof("record_type") == "history"
    ]
    steps = [int(step) for step in steps]
    assert steps == sorted(set(steps)) and steps[-1] == 6


def test_wandb_without_network_is_told_once(run, no_account, monkeypatch, warned):  # noqa: F811
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    runner = run({"wandb": WandbSink(settings={"init_timeout": 1})})
    assert runner.run("train").status == "finished"
    (line,) = warned()
    assert "sink 'wandb' could not be opened, the run goes on without it" in line
    assert line.endswith("To do without it: sinks=-wandb")

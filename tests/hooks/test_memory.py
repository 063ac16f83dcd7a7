"""Memory that is really taken, and really not there."""

from __future__ import annotations

import logging

import pytest
import torch
from fakes import TinyTask

from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.hooks import memory
from hookexp.hooks.memory import MemoryHook, host_mib


def notes_of(error):
    return "\n".join(getattr(error, "__notes__", []))


def test_the_host_s_memory_grows_by_what_is_taken():
    before = host_mib()
    taken = torch.ones(64 * 2**20 // 4)
    assert 60 < host_mib() - before < 80
    assert taken.numel()


def test_where_the_system_does_not_tell_the_highest_is_taken(monkeypatch):
    monkeypatch.setattr(memory, "STATM_FILE", memory.Path("/nowhere"))
    assert host_mib() > 50


def test_each_epoch_is_told_and_rows_have_the_host_s(make_runner, caplog):
    runner = make_runner({"memory": MemoryHook()}, max_epochs=2)
    with caplog.at_level(logging.INFO, "hookexp"):
        runner.run("train")
    assert "memory in epoch 1: host " in caplog.text
    assert "memory in epoch 2: host " in caplog.text
    hub = runner.message_hub
    assert len(hub.get_scalar("memory/host").recent()) == 2
    assert hub.read("train/", 1)["memory_host"] == pytest.approx(host_mib(), rel=0.2)


def test_when_the_host_s_memory_runs_out_the_error_says_what_to_try(make_runner, caplog):
    class Greedy(TinyTask):
        def train_step(self, model, batch):
            return {"loss": torch.empty(2**60).sum()}

    runner = make_runner({"memory": MemoryHook()}, task=Greedy(), max_epochs=1)
    with pytest.raises(ConfigError, match="out of memory on cpu") as caught:
        runner.run("train")
    assert "hooks/optimizer=accumulate" in notes_of(caught.value.__cause__)
    assert "hooks/optimizer=accumulate" in caplog.text
    assert not (runner.work_dir / "oom_snapshot.pickle").exists()


def test_another_error_is_left_alone(make_runner):
    class Bomb(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            raise RuntimeError("boom")

    runner = make_runner({"memory": MemoryHook(), "bomb": Bomb()}, max_epochs=1)
    with pytest.raises(RuntimeError, match="boom") as caught:
        runner.run("train")
    assert "accumulate" not in notes_of(caught.value)


@pytest.fixture
def stand_in_gpu(monkeypatch):
    """The functions of torch.cuda that the hook calls, where there is no GPU to call them on."""
    calls = []
    for module, name, answer in (
        (torch.cuda, "reset_peak_memory_stats", None),
        (torch.cuda, "max_memory_allocated", 3 * 2**20),
        (torch.cuda, "max_memory_reserved", 5 * 2**20),
        (torch.cuda.memory, "_record_memory_history", None),
        (torch.cuda.memory, "_dump_snapshot", None),
    ):

        def call(*args, _name=name, _answer=answer, **kwargs):
            calls.append((_name, args, kwargs))
            return _answer

        monkeypatch.setattr(module, name, call)
    return calls


class OnGpu(Hook):
    """Says that the run is on a GPU, and runs out of its memory at an iteration."""

    priority = "HIGHEST"

    def __init__(self, fails_at=-1):
        self.fails_at = fails_at

    def before_run(self, runner):
        runner.device = torch.device("cuda")

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        if runner.iter == self.fails_at:
            raise torch.OutOfMemoryError("CUDA out of memory")


def test_on_a_gpu_the_peak_is_that_of_the_epoch(make_runner, stand_in_gpu, caplog):
    runner = make_runner({"gpu": OnGpu(), "memory": MemoryHook(snapshot=False)}, max_epochs=2)
    with caplog.at_level(logging.INFO, "hookexp"):
        runner.run("train")
    assert "gpu peak 3 MiB, gpu reserved 5 MiB" in caplog.text
    assert runner.message_hub.get_scalar("memory/gpu_peak").current() == 3
    names = [name for name, _, _ in stand_in_gpu]
    assert names.count("reset_peak_memory_stats") == 2
    assert "_record_memory_history" not in names


def test_on_a_gpu_a_snapshot_is_written_when_memory_runs_out(make_runner, stand_in_gpu):
    hooks = {"gpu": OnGpu(fails_at=1), "memory": MemoryHook(max_entries=7)}
    runner = make_runner(hooks, max_epochs=1)
    with pytest.raises(ConfigError, match="out of memory on cuda") as caught:
        runner.run("train")
    path = str(runner.work_dir / "oom_snapshot.pickle")
    assert ("_record_memory_history", (), {"max_entries": 7}) in stand_in_gpu
    assert ("_dump_snapshot", (path,), {}) in stand_in_gpu
    assert stand_in_gpu[-1] == ("_record_memory_history", (), {"enabled": None})
    assert "pytorch.org/memory_viz" in notes_of(caught.value.__cause__)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_a_real_gpu_s_snapshot(make_runner):
    class Greedy(TinyTask):
        def train_step(self, model, batch):
            return {"loss": torch.empty(2**45, device="cuda").sum()}

    class Real(Hook):
        priority = "HIGHEST"

        def before_run(self, runner):
            runner.device = torch.device("cuda")

    hooks = {"real": Real(), "memory": MemoryHook()}
    runner = make_runner(hooks, task=Greedy(), max_epochs=1)
    with pytest.raises(ConfigError, match="out of memory on cuda"):
        runner.run("train")
    assert (runner.work_dir / "oom_snapshot.pickle").stat().st_size > 0


def test_what_is_refused():
    with pytest.raises(ValueError, match="max_entries=0: use a whole number, 1 or more"):
        MemoryHook(max_entries=0)

"""Checkpoints written by another thread: a copy is taken, failures come back, nothing is lost."""

from __future__ import annotations

import logging
import resource
import threading
import weakref

import pytest
import torch
from fakes import TinyData, TinyModel

from hookexp.checkpoint.host_copy import HostCopy, num_bytes
from hookexp.checkpoint.reading import load_checkpoint
from hookexp.checkpoint.store import CheckpointStore
from hookexp.checkpoint.writer import CheckpointWriter
from hookexp.errors import ConfigError
from hookexp.hooks.checkpoint import CheckpointHook


@pytest.fixture
def writer(tmp_path):
    return CheckpointWriter(CheckpointStore(tmp_path), flush=lambda: None)


class Gate:
    """Holds the writing thread until it is opened."""

    def __init__(self):
        self.event = threading.Event()

    def __call__(self):
        assert self.event.wait(30)


def test_training_may_change_what_is_being_saved(tmp_path):
    gate = Gate()
    writer = CheckpointWriter(CheckpointStore(tmp_path), flush=gate)
    weight, counts = torch.ones(3), [1]
    writer.save({"weight": weight, "counts": counts}, "a.pth")
    weight.zero_()
    counts.append(2)
    assert not (tmp_path / "a.pth").exists()
    gate.event.set()
    writer.wait()
    saved = load_checkpoint(tmp_path / "a.pth")
    assert saved["weight"].tolist() == [1, 1, 1] and saved["counts"] == [1]


def test_what_was_copied_is_let_go_of_by_the_thread_that_writes(tmp_path):
    gate = Gate()
    writer = CheckpointWriter(CheckpointStore(tmp_path), flush=gate)
    is_free, freed_by = threading.Event(), []
    view = torch.ones(3).detach()
    weakref.finalize(
        view, lambda: (freed_by.append(threading.current_thread().name), is_free.set())
    )
    writer.save({"weight": view}, "a.pth")
    del view
    assert not is_free.is_set()
    gate.event.set()
    assert is_free.wait(30) and freed_by[0].startswith("checkpoint")


def test_one_is_in_flight_and_all_arrive_in_order(writer, tmp_path):
    value = torch.zeros(1000)
    for number in range(5):
        value.fill_(number)
        writer.save({"value": value}, f"{number}.pth")
    writer.wait()
    for number in range(5):
        assert load_checkpoint(tmp_path / f"{number}.pth")["value"].eq(number).all()
    assert writer.store.newest() == tmp_path / "4.pth"


def test_a_wait_that_was_broken_off_can_be_made_again(tmp_path, monkeypatch):
    def dead_worker(future):
        raise RuntimeError("DataLoader worker (pid 1) is killed by signal: Killed.")

    gate = Gate()
    writer = CheckpointWriter(CheckpointStore(tmp_path), flush=gate)
    writer.save({"a": 1}, "a.pth")
    with monkeypatch.context() as patch, pytest.raises(RuntimeError):
        patch.setattr("concurrent.futures.Future.result", dead_worker)
        writer.wait()
    gate.event.set()
    writer.wait()
    assert writer.store.newest() == tmp_path / "a.pth"


def test_the_log_is_on_the_disk_before_the_checkpoint_has_its_name(tmp_path):
    seen = []
    writer = CheckpointWriter(
        CheckpointStore(tmp_path), flush=lambda: seen.append((tmp_path / "a.pth").exists())
    )
    writer.save({}, "a.pth")
    writer.wait()
    assert seen == [False]


def limited_file_size(size):
    """A real failure of a real write, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_a_failed_write_names_the_last_good_one_at_the_next_safe_point(writer, tmp_path):
    writer.save({"a": 1}, "good.pth")
    writer.wait()
    lift = limited_file_size(4096)
    try:
        writer.save({"a": torch.zeros(10_000)}, "bad.pth", obsolete=["good.pth"])
        with pytest.raises(
            ConfigError, match=r"bad\.pth could not be written .*last good one is good\.pth"
        ):
            writer.wait()
    finally:
        lift()
    writer.raise_failure()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["good.pth", "last_checkpoint"]


def test_it_can_go_on_after_a_failure(writer, caplog):
    writer.goes_on_after_failure = True
    lift = limited_file_size(4096)
    try:
        with caplog.at_level(logging.WARNING):
            writer.save({"a": torch.zeros(10_000)}, "bad.pth")
            writer.wait()
    finally:
        lift()
    assert "Training goes on" in caplog.text
    writer.save({"a": 1}, "good.pth")
    writer.wait()
    assert writer.store.newest().name == "good.pth"


def test_too_little_room_is_told_before_the_write(writer, monkeypatch):
    usage = type("Usage", (), {"free": 2 << 20})
    monkeypatch.setattr("hookexp.checkpoint.writer.shutil.disk_usage", lambda folder: usage)
    with pytest.raises(
        ConfigError,
        match=r"it takes 4\.2 MiB and 2\.0 MiB of the disk are free\. There is none before",
    ):
        writer.save({"a": torch.zeros(1 << 20)}, "big.pth")


def test_a_run_stops_or_goes_on_as_configured(make_runner, tmp_path):
    class Wide(TinyModel):
        def __init__(self):
            super().__init__()
            self.extra = torch.nn.Linear(100, 100)

    def run(**arguments):
        folder = tmp_path / arguments.get("on_write_error", "stop")
        runner = make_runner(
            {"checkpoint": CheckpointHook(**arguments)}, model=Wide(), work_dir=folder, max_epochs=3
        )
        lift = limited_file_size(8192)
        try:
            runner.run("train")
        finally:
            lift()
        return runner

    with pytest.raises(ConfigError, match=r"resume=auto.*on_write_error=go_on"):
        run()
    assert run(on_write_error="go_on").epoch == 3


def test_a_copy_uses_its_memory_again_and_keeps_ties():
    shared = torch.arange(6.0)
    state = {"a": {"one": shared, "two": shared}, "b": [torch.zeros(2, dtype=torch.int64), "x", 3]}
    host_copy = HostCopy()
    first = host_copy.copy(state)
    assert first["a"]["one"] is first["a"]["two"] is not shared
    assert first["b"][1:] == ["x", 3] and first["b"][0].dtype == torch.int64
    pointer = first["a"]["one"].data_ptr()
    shared += 1
    second = host_copy.copy(state)
    assert second["a"]["one"].data_ptr() == pointer
    assert torch.equal(second["a"]["one"], shared)
    assert num_bytes(state) == 6 * 4 * 2 + 2 * 8


def test_a_copy_has_the_layout_of_what_it_was_made_of():
    host_copy = HostCopy()
    image = torch.arange(24.0).view(1, 2, 3, 4)
    for layout in (torch.contiguous_format, torch.channels_last):
        tensor = image.to(memory_format=layout)
        copied = host_copy.copy({"a": tensor})["a"]
        assert torch.equal(copied, image) and copied.stride() == tensor.stride()


def test_a_copy_of_a_sparse_gradient_is_one_of_its_own():
    sparse = torch.eye(3).to_sparse().coalesce()
    copied = HostCopy().copy({"gradients": [sparse]})["gradients"][0]
    assert copied.is_sparse
    sparse.values().mul_(2)
    assert torch.equal(copied.to_dense(), torch.eye(3))


def test_two_ways_to_a_tensor_that_read_the_same_are_two():
    state = {"m": {"fc.w": torch.ones(2)}, "m.fc": {"w": torch.zeros(2)}}
    host_copy = HostCopy()
    host_copy.copy(state)
    copied = host_copy.copy(state)
    assert torch.equal(copied["m"]["fc.w"], torch.ones(2))
    assert torch.equal(copied["m.fc"]["w"], torch.zeros(2))


def test_tensors_without_elements_are_not_tied_by_being_nowhere():
    copied = HostCopy().copy({"one": torch.empty(0), "two": torch.empty(0)})
    assert copied["one"] is not copied["two"]


def test_a_part_that_comes_and_goes_moves_nothing_else_and_is_not_kept_for_good():
    weights = {"one": torch.ones(2), "two": torch.full((2,), 2.0)}
    open_window = {"gradients": [torch.zeros(2), torch.zeros(3)], **weights}
    host_copy = HostCopy()

    def memory() -> set[int]:
        return {buffer.data_ptr() for some in host_copy._buffers.values() for buffer in some}

    host_copy.copy(weights)
    first = memory()
    copied = host_copy.copy(open_window)
    assert first < memory() and len(memory()) == 4
    assert copied["two"].tolist() == [2, 2] and copied["gradients"][0].tolist() == [0, 0]
    copied = host_copy.copy(weights)
    assert len(memory()) == 2 and copied["one"].tolist() == [1, 1]


def test_a_copy_that_failed_leaves_nothing_behind_for_the_next():
    weight, host_copy = torch.ones(2), HostCopy()
    with pytest.raises(NotImplementedError):
        host_copy.copy({"weight": weight, "without memory": torch.empty(2, device="meta")})
    weight.zero_()
    assert host_copy.copy({"weight": weight})["weight"].tolist() == [0, 0]


def test_a_copy_learns_nothing_from_what_it_was_made_of():
    weight = torch.ones(2, requires_grad=True)
    assert not HostCopy().copy({"weight": weight})["weight"].requires_grad


@pytest.mark.parametrize("item", [1, (1, (2, 3))])
def test_a_copy_of_a_set_does_not_grow_with_it(item):
    state = {"seen": {item}}
    copied = HostCopy().copy(state)
    state["seen"].add(4)
    assert copied == {"seen": {item}}


def test_synchronous_saving_gives_the_same_content(make_runner, tmp_path):
    for name, async_save in [("a", True), ("b", False)]:
        hook = CheckpointHook(async_save=async_save)
        make_runner(
            {"checkpoint": hook}, work_dir=tmp_path / name, data=TinyData(), max_epochs=1
        ).run("train")
    one = load_checkpoint(tmp_path / "a" / "epoch_1.pth")["state_dict"]
    two = load_checkpoint(tmp_path / "b" / "epoch_1.pth")["state_dict"]
    assert all(torch.equal(one[key], two[key]) for key in one)


def test_a_conjugated_view_is_not_taken_for_what_it_is_a_view_of() -> None:
    """They have memory, shape, strides and dtype in common."""
    number = torch.randn(3, dtype=torch.complex64)
    state = {"number": number, "conjugated": number.conj(), "imag": number.conj().imag}
    copied = HostCopy().copy({**state, "minus": number.imag})
    for name, tensor in state.items():
        assert torch.equal(copied[name], tensor), name
    assert torch.equal(copied["minus"], number.imag)

"""Whatever raises, wherever: hooks are told, sinks are closed, the last checkpoint is whole."""

from __future__ import annotations

import errno
import json
import math
import multiprocessing
import os
import re
import signal
import sys
import time
from types import MethodType

import pytest
import torch
from fakes import TinyData, TinyTask
from test_resume import assert_equal
from torch.multiprocessing.reductions import rebuild_storage_fd
from torch.nn.functional import dropout
from torch.utils.data import DataLoader, Dataset

from hookexp.checkpoint.reading import load_checkpoint
from hookexp.checkpoint.store import CheckpointStore
from hookexp.compose.isolation import restored_process_state
from hookexp.data.loader import WorkerLoader
from hookexp.data.sampler import BatchSampler
from hookexp.data.stream import BatchStream
from hookexp.errors import ConfigError
from hookexp.failures import is_out_of_memory
from hookexp.hook import MOUNT_POINTS, Hook, Priority
from hookexp.hooks.check_invalid_loss import CheckInvalidLossHook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.ema import EMAHook
from hookexp.hooks.logger import LoggerHook
from hookexp.sinks.jsonl import JsonlSink

LATER = dict.fromkeys(
    ("before_train_iter", "after_train_iter", "before_optim_step", "after_optim_step"), 3
) | {"before_save_checkpoint": 2}
"""The call at which it happens, where it is not the first."""
NOTHING_SAVED = (
    *("before_run", "before_train", "before_train_epoch"),
    *(point for point in MOUNT_POINTS if "test" in point),
)


class Boom(Exception):
    pass


class Bomb(Hook):
    """Raises at a mount point, when it is called for the n-th time."""

    priority = Priority.NORMAL

    def __init__(self, point, on_call=1):
        def explode(self, runner, *args, **kwargs):
            self.calls_left -= 1
            if self.calls_left == 0:
                raise Boom("boom")

        self.calls_left = on_call
        self._point = point
        setattr(self, point, MethodType(explode, self))

    def get_triggered_stages(self):
        return [self._point]


class Witness(Hook):
    priority = Priority.LOWEST

    def __init__(self):
        self.calls = []

    def on_exception(self, runner, error):
        self.calls.append(("on_exception", str(error)))

    def after_run(self, runner):
        self.calls.append("after_run")


class Dropping(TinyTask):
    """Draws random numbers in training and in validation."""

    def train_step(self, model, batch):
        inputs, targets = batch
        return super().train_step(model, (dropout(inputs, 0.3), targets))

    def val_step(self, model, batch):
        torch.rand(3)
        return super().val_step(model, batch)


def parts(**checkpoint):
    return {
        "logger": LoggerHook(interval=1),
        "checkpoint": CheckpointHook(by_epoch=False, **checkpoint),
        "ema": EMAHook(momentum=0.1),
        "witness": Witness(),
    }


@pytest.fixture
def run(make_runner, tmp_path):
    def run(bombs=None, mode="train", folder="run", on_exception=False, **more):
        jsonl = JsonlSink()
        runner = make_runner(
            {**parts(save_on_exception=on_exception), **(bombs or {})},
            work_dir=tmp_path / folder,
            sinks={"jsonl": jsonl},
            task=Dropping(),
            max_epochs=2,
            val_size=16,
            **more,
        )
        runner.jsonl = jsonl
        error = None
        try:
            runner.run(mode)
        except Boom as caught:
            error = caught
        return runner, error

    return run


def check_the_end(runner, error, point):
    assert error is not None, f"{point} was never called"
    expected = [("on_exception", "boom"), "after_run"]
    calls = runner.hooks["witness"].calls
    assert calls == (expected[::-1] if point == "after_run" else expected)
    assert runner.jsonl._file is None, "the sink was not closed"
    folder = runner.work_dir
    assert list(folder.glob(".*.tmp")) == []
    if (folder / "last_checkpoint").exists():
        store = CheckpointStore(folder)
        _, *lines = (folder / "last_checkpoint").read_text().splitlines()
        assert all(store.is_whole(line.split()[2]) for line in lines)
        assert store.newest() is not None


@pytest.mark.parametrize("point", MOUNT_POINTS)
def test_a_hook_that_raises_at(point, run, caplog):
    bombs, more = {"bomb": Bomb(point, LATER.get(point, 1))}, {}
    if point == "after_load_checkpoint":
        run({"bomb": Bomb("before_train_iter", 3)})
        more = {"resume": "auto"}
    if point == "on_exception":
        bombs["other"] = Bomb("after_train_iter", 4)
    runner, error = run(bombs, "test" if "test" in point else "train", **more)
    check_the_end(runner, error, point)
    notes = "\n".join(error.__notes__)
    if point == "on_exception":
        notes, other = caplog.text, notes
        assert other == "in hook 'other' (Bomb) at after_train_iter, epoch 1, iter 3"
    where = "" if point == "on_exception" else f", epoch {runner.epoch}, iter {runner.iter}"
    assert f"in hook 'bomb' (Bomb) at {point}{where}" in notes
    if point not in NOTHING_SAVED:
        assert (runner.work_dir / "last_checkpoint").exists()


def losses_of(runner):
    lines = (runner.work_dir / "scalars.jsonl").read_text().splitlines()
    return [(r["mode"], r["step"], r.get("loss")) for r in map(json.loads, lines)]


SOUND = (
    *("before_val", "before_val_epoch", "before_val_iter", "after_val_iter"),
    *("before_save_checkpoint", "fetch"),
)
BREAKING = [
    *(p for p in MOUNT_POINTS if "train" in p or "optim" in p),
    *("after_val_epoch", "after_val"),
]


class BreakingData:
    """Data in memory whose n-th batch cannot be read, once."""

    def __init__(self, on_call):
        self.data, self.calls_left = TinyData(24), on_call

    def __len__(self):
        return len(self.data)

    def get_batch(self, indices, generator):
        self.calls_left -= 1
        if self.calls_left == 0:
            raise Boom("boom")
        return self.data.get_batch(indices, generator)


@pytest.mark.parametrize("point", BREAKING)
def test_where_an_iteration_was_broken_off_the_weights_alone_are_saved(run, point):
    count = {"before_train": 1, "after_train": 1}.get(point, 2)
    broken, error = run({"bomb": Bomb(point, count)}, on_exception=True)
    assert error is not None
    path = broken.work_dir / f"exception_iter_{broken.iter}.pth"
    assert set(load_checkpoint(path)) <= {"meta", "state_dict", "ema_state_dict"}
    with pytest.raises(ConfigError, match=r"holds no loop, .*load_from=PATH"):
        run(folder="rest", resume=str(path))


@pytest.mark.parametrize("point", SOUND)
def test_where_none_was_the_saved_file_continues_exactly(run, point):
    if point == "fetch":
        broken, error = run(on_exception=True, data=BreakingData(on_call=5))
    else:
        bomb = Bomb(point, 1 if point in ("before_val", "before_val_epoch") else 2)
        broken, error = run({"bomb": bomb}, on_exception=True)
    assert error is not None
    path = broken.work_dir / f"exception_iter_{broken.iter}.pth"
    assert CheckpointStore(broken.work_dir).newest().name.startswith("iter_")
    rest, error = run(folder="rest", resume=str(path))
    assert error is None
    whole, _ = run(folder="whole")
    one, two = (load_checkpoint(r.work_dir / "iter_6.pth") for r in (whole, rest))
    for checkpoint in (one, two):
        del checkpoint["meta"], checkpoint["message_hub"], checkpoint["hooks"]["checkpoint"]
    assert_equal(one, two)
    rows, tail = losses_of(whole), losses_of(rest)
    assert tail and rows[-len(tail) :] == tail


def test_inside_of_an_optimizer_step_nothing_is_saved(run, make_runner, caplog):
    class Half(torch.optim.SGD):
        def step(self, closure=None):
            if self.param_groups[0]["params"][0].grad is not None and runner.iter == 2:
                raise Boom("boom")
            return super().step(closure)

    runner = make_runner(parts(save_on_exception=True), max_epochs=2)
    optimizer = Half(runner.model.parameters(), lr=0.1)
    runner.optim_wrapper.optimizers["default"] = runner.optim_wrapper._first = optimizer
    with pytest.raises(Boom):
        runner.run("train")
    assert sorted(p.name for p in runner.work_dir.glob("*.pth")) == ["iter_1.pth", "iter_2.pth"]
    assert "nothing is saved: the error came inside the optimizer's step" in caplog.text


# -- the machine, and numbers that are none -----------------------------------------------------


class Falling(Dataset):
    """Its sample 30 is a catastrophe; workers read a few batches ahead."""

    def __init__(self, what):
        self.what = what

    def __len__(self):
        return 32

    def __getitem__(self, index):
        if index == 30:
            self.what()
        return torch.ones(4), torch.ones(1)


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def raise_key_error():
    raise KeyError("no label")


def hang():
    time.sleep(1)


def from_disk(runner, what, num_workers=2, **options):
    sampler = BatchSampler(32, 2, seed=0, shuffle=False)
    loader = WorkerLoader(Falling(what), sampler, num_workers=num_workers, **options)
    runner._parts.train_loader = runner.train_loop.dataloader = loader
    return runner


def newest(runner):
    return CheckpointStore(runner.work_dir).newest().name


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_worker_that_dies_is_one_message_and_the_state_is_saved(make_runner):
    runner = from_disk(make_runner(parts(save_on_exception=True), max_epochs=2), die)
    with pytest.raises(ConfigError) as caught:
        runner.run("train")
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    killed = r"\(process \d+\) is killed by signal: Kil"
    assert re.search(rf"worker of the data loader ({killed}|ended within a batch)", message)
    assert "data.num_workers=0" in message and "in /dev/shm" in message
    assert f"The last checkpoint is {newest(runner)}: resume=auto continues from it" in message


class KillsTheOtherWorkers(Hook):
    """While the exception's checkpoint is collected, as where memory ran out for all of them."""

    def on_exception(self, runner, error):
        self.is_failing = True

    def before_save_checkpoint(self, runner, checkpoint):
        if hasattr(self, "is_failing"):
            for worker in multiprocessing.active_children():
                worker.kill()
            time.sleep(0.3)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_second_worker_that_dies_does_not_break_off_what_is_saved_for_the_first(make_runner):
    hooks = {**parts(save_on_exception=True), "kills": KillsTheOtherWorkers()}
    runner = from_disk(make_runner(hooks, max_epochs=2), die)
    list(DataLoader(range(2), num_workers=1))  # The first in a process installs torch's handler.
    handler = signal.getsignal(signal.SIGCHLD)
    with pytest.raises(ConfigError, match="worker of the data loader"):
        runner.run("train")
    assert list(runner.work_dir.glob("exception_iter_*.pth"))
    assert (signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL) == (handler == signal.SIG_DFL)


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_worker_that_hangs_is_one_message_where_the_loader_has_a_timeout(make_runner):
    runner = from_disk(make_runner(parts(), max_epochs=2), hang, timeout=0.2)
    with pytest.raises(ConfigError, match=r"no batch within its timeout of 0.2 seconds, on cpu"):
        runner.run("train")


@pytest.mark.parametrize("error", [ConnectionResetError, EOFError, FileNotFoundError])
def test_a_worker_that_dies_before_its_batch_is_taken_over_is_the_same_message(make_runner, error):
    class Descriptor:
        def detach(self):
            raise error

    class Half:
        def __iter__(self):
            yield rebuild_storage_fd(torch.UntypedStorage, Descriptor(), 4)

    runner = make_runner(max_epochs=1, val_size=0)
    runner._parts.train_loader = runner.train_loop.dataloader = BatchStream(Half())
    with pytest.raises(ConfigError, match="worker of the data loader ended within a batch, on cpu"):
        runner.run("train")


def test_a_connection_of_a_data_set_is_none_of_a_worker(make_runner):
    class Remote:
        def __iter__(self):
            raise ConnectionResetError("the server of the data")

    runner = make_runner(max_epochs=1, val_size=0)
    runner._parts.train_loader = runner.train_loop.dataloader = BatchStream(Remote())
    with pytest.raises(ConnectionResetError, match="server"):
        runner.run("train")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_an_exception_in_a_worker_keeps_its_type_and_gains_a_note(make_runner):
    runner = from_disk(make_runner(parts(save_on_exception=True), max_epochs=2), raise_key_error)
    with pytest.raises(KeyError) as caught:
        runner.run("train")
    assert "in worker" in caught.value.__notes__[-1]
    assert "data.num_workers=0 runs the data set in this process" in caught.value.__notes__[-1]
    assert "loop" in load_checkpoint(runner.work_dir / "exception_iter_15.pth")


def refuse():
    raise ConfigError("data.collate_fn: collate() failed:\n  why")


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
def test_a_message_made_in_a_worker_is_told_without_its_traceback(make_runner):
    with pytest.raises(ConfigError) as caught:
        from_disk(make_runner(max_epochs=2), refuse).run("train")
    told = "data.collate_fn: collate() failed:\n  why\nwhile sample 30 of Falling was read"
    assert str(caught.value) == told


class Exits(Hook):
    def __init__(self, point):
        setattr(self, point, lambda *args, **kwargs: sys.exit(0))
        self.point = point

    def get_triggered_stages(self):
        return [self.point]


@pytest.mark.parametrize("point", ["after_train_iter", "after_val_epoch", "after_run"])
def test_an_exit_in_the_midst_of_a_run_is_not_its_end(make_runner, point):
    runner = make_runner({**parts(save_on_exception=True), "exits": Exits(point)}, max_epochs=2)
    with pytest.raises(ConfigError) as caught:
        runner.run("train")
    message = str(caught.value)
    assert message.startswith(f"sys.exit(0) was called in hook 'exits' at {point}, epoch ")
    assert "the run is not finished" in message and "runner.state.stop" in message
    assert any(runner.work_dir.glob("exception_iter_*.pth")) == (point != "after_run")


def test_an_exit_in_a_task_says_when(make_runner):
    class Leaves(TinyTask):
        def val_step(self, model, batch):
            sys.exit(3)

    runner = make_runner(parts(), max_epochs=2, task=Leaves())
    with pytest.raises(
        ConfigError, match=r"sys.exit\(3\) was called on cpu in the validation after"
    ):
        runner.run("train")


def test_a_state_that_cannot_be_taken_names_its_hook(make_runner):
    class Stateful(Hook):
        def state_dict(self):
            raise KeyError("x")

        def load_state_dict(self, state):
            pass

    with pytest.raises(KeyError) as caught:
        make_runner({**parts(), "mine": Stateful()}, max_epochs=1).run("train")
    assert "in hook 'mine' (Stateful) at state_dict" in caught.value.__notes__


def test_an_operation_that_is_not_deterministic_says_what_forbids_it(make_runner):
    class Put(TinyTask):
        def train_step(self, model, batch):
            torch.zeros(3).put_(torch.tensor([0]), torch.ones(1))
            return super().train_step(model, batch)

    with restored_process_state():
        torch.use_deterministic_algorithms(True)
        with pytest.raises(RuntimeError, match="put_ does not have a deterministic") as caught:
            make_runner(parts(), task=Put(), max_epochs=1).run("train")
    assert caught.value.__notes__[-1] == (
        "trainer.deterministic=true allows no such operation on cpu: use another one, or "
        "trainer.deterministic=false"
    )


class Lookup(torch.nn.Module):
    """Rows of a table, whose gradients are sparse."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(8, 1, sparse=True)

    def forward(self, inputs):
        return self.table(inputs.long().clamp(0, 7)).sum(1)


def test_sparse_gradients_say_what_a_fused_step_needs(make_runner):
    runner = make_runner(parts(), model=Lookup(), max_epochs=1)
    runner.optimizer.param_groups[0]["fused"] = True
    with pytest.raises(RuntimeError, match="does not support sparse gradients") as caught:
        runner.run("train")
    assert "optimizer.fused=false" in caught.value.__notes__[-1]
    runner = make_runner(parts(), model=Lookup(), max_epochs=1)
    runner.optimizer.param_groups[0]["fused"] = True
    runner.optim_wrapper.optimizers = {"g": runner.optimizer}
    with pytest.raises(RuntimeError, match="does not support sparse gradients") as caught:
        runner.run("train")
    assert ": optimizer.g.fused=false optimizer.g.weight_decay=0, or" in caught.value.__notes__[-1]


def test_a_part_of_a_model_that_is_wrapped_for_several_ranks_is_out_of_reach(make_runner):
    class ReachesIn(TinyTask):
        def train_step(self, model, batch):
            raise AttributeError("'DistributedDataParallel' object has no attribute 'd'")

    with pytest.raises(AttributeError) as caught:
        make_runner(parts(), task=ReachesIn(), max_epochs=1).run("train")
    note = next(note for note in caught.value.__notes__ if "the model is wrapped" in note)
    assert "forward call its parts" in note and note.endswith("is in model.module.d")


def test_which_errors_are_of_memory():
    assert is_out_of_memory(MemoryError())
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"))
    assert is_out_of_memory(OSError(errno.ENOMEM, "Cannot allocate memory"))
    assert not is_out_of_memory(OSError(errno.ENOSPC, "No space left on device"))
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert not is_out_of_memory(ValueError("not enough memory"))


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has"),
            r"\(CUDA out of memory\)",
        ),
        (MemoryError(), r"\(MemoryError\)"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), r"\(\[Errno 12\] Cannot allocate memory"),
        (None, r"\(DefaultCPUAllocator: can't allocate memory: you tried to allocate \d+ bytes\)"),
    ],
)
def test_out_of_memory_is_one_message_with_what_to_try(make_runner, error, said):
    class Hungry(TinyTask):
        def train_step(self, model, batch):
            if runner.iter == 2:
                torch.empty(1 << 60, dtype=torch.uint8) if error is None else throw(error)
            return super().train_step(model, batch)

    runner = make_runner(parts(), task=Hungry(), max_epochs=2)
    with pytest.raises(ConfigError, match=rf"out of memory on cpu in epoch 1, iteration 3 {said}"):
        runner.run("train")
    runner = make_runner(parts(), task=Hungry(), max_epochs=2, resume="auto")
    with pytest.raises(ConfigError) as caught:
        runner.run("train")
    assert len(str(caught.value).splitlines()) == 1
    assert "smaller data.batch_size" in str(caught.value)
    assert "The last checkpoint is iter_2.pth" in str(caught.value)


@pytest.mark.parametrize(
    "said",
    [
        "[/a/gloo/transport/tcp/pair.cc:537] Read error: Connection reset by peer.",
        "NCCL error: remote process exited or there was a network error, NCCL version 2.27",
    ],
)
def test_the_end_of_another_rank_is_one_message(make_runner, said):
    class Alone(TinyTask):
        def train_step(self, model, batch):
            if runner.iter == 2:
                raise RuntimeError(said)
            return super().train_step(model, batch)

    runner = make_runner(parts(), task=Alone(), max_epochs=2)
    with pytest.raises(
        ConfigError, match=r"^another rank has ended, on cpu in epoch 1, iteration 3"
    ):
        runner.run("train")


@pytest.mark.parametrize(
    ("mode", "settings", "where"),
    [
        ("train", {"max_epochs": 1}, "in the validation after epoch 1 "),
        ("train", {"max_iters": 4, "val_interval": 2}, "in the validation after iteration 2 "),
        ("val", {"max_epochs": 1}, "in mode=val "),
    ],
)
def test_what_fails_in_an_evaluation_is_told_to_be_there(make_runner, mode, settings, where):
    class Hungry(TinyTask):
        def val_step(self, model, batch):
            raise MemoryError

    with pytest.raises(ConfigError, match=f"^out of memory on cpu {where}"):
        make_runner(parts(), task=Hungry(), **settings).run(mode)


def throw(error):
    raise error


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_loss_that_is_no_number_stops_before_the_weights_change(make_runner, value):
    class Diverging(TinyTask):
        def train_step(self, model, batch):
            outputs = super().train_step(model, batch)
            return {"loss": outputs["loss"] * (value if runner.iter == 3 else 1.0)}

    class Watch(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            self.weights = [p.detach().clone() for p in runner.model.parameters()]

    hooks = {"invalid": CheckInvalidLossHook(interval=1), "watch": Watch(), **parts()}
    runner = make_runner(hooks, task=Diverging(), max_epochs=2)
    with pytest.raises(
        ConfigError, match=r"not finite at iteration 4 .* Try a lower optimizer\.lr"
    ):
        runner.run("train")
    for before, now in zip(runner.hooks["watch"].weights, runner.model.parameters(), strict=True):
        assert torch.equal(before, now)
    assert newest(runner) == "iter_3.pth"

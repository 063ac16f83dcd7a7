"""Rates of real runs on a clock that the test moves on, and operations counted by hand."""

from __future__ import annotations

import pytest
import torch
from fakes import TinyModel, TinyTask
from torch import nn

from hookexp.errors import ConfigError
from hookexp.hook import Hook, Priority
from hookexp.hooks import throughput
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.throughput import ThroughputHook


class Clock(Hook):
    """A training batch takes 2 s, a validation batch 100, a checkpoint 1000; reads after each."""

    priority = Priority.HIGHEST

    def __init__(self):
        self.now = 50.0

    def before_train_iter(self, runner, batch_idx, data_batch=None):
        runner.clock.began = self.now
        self.now += 2.0

    def before_val_iter(self, runner, batch_idx, data_batch=None):
        self.now += 100.0


class SlowSave(Hook):
    """Takes its time after the throughput hook was told of a save."""

    priority = Priority.LOWEST

    def __init__(self, clock):
        self.clock = clock

    def before_save_checkpoint(self, runner, checkpoint):
        self.clock.now += 1000.0


class Reader(Hook):
    """What a logger would read after every second batch."""

    priority = Priority.BELOW_NORMAL

    def __init__(self):
        self.rows = []

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter % 2 == 1:
            row = runner.message_hub.read("train/", 1)
            assert runner.message_hub.read("train/", 1) == row  # A second reader sees the same.
            self.rows.append(row)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(throughput, "perf_counter", lambda: clock.now)
    return clock


def run(make_runner, clock, hook, hooks=None, **more):
    reader = Reader()
    hooks = {"clock": clock, "throughput": hook, "reader": reader, **(hooks or {})}
    runner = make_runner(hooks, **{"max_epochs": 2, "train_size": 32, **more})
    runner.run("train")
    return reader.rows, runner


class Words:
    """Ids of tokens: 32 sequences of 5."""

    def __len__(self):
        return 32

    def get_batch(self, indices, generator):
        return {"ids": torch.ones(len(indices), 5, dtype=torch.long), "mask": None}


class WordTask(TinyTask):
    def train_step(self, model, batch):
        return {"loss": model(batch["ids"].float()[:, :4]).mean()}


def test_samples_per_second_are_of_training_alone(make_runner, clock):
    save = {"checkpoint": CheckpointHook(), "slow": SlowSave(clock)}
    rows, _ = run(make_runner, clock, ThroughputHook(), save)
    assert [row["samples_per_s"] for row in rows] == [4.0] * 4
    assert clock.now > 2000
    assert "tokens_per_s" not in rows[-1]
    assert "mfu" not in rows[-1]
    assert "tflops" not in rows[-1]


def test_a_reading_within_a_validation_counts_up_to_it(make_runner, clock):
    read = []

    class Late(Hook):
        priority = Priority.LOWEST

        def before_val_epoch(self, runner):
            clock.now += 500.0
            read.append(runner.message_hub.read("train/", 1)["samples_per_s"])

    rows, _ = run(make_runner, clock, ThroughputHook(), {"late": Late()}, train_size=24)
    assert read == [4.0, 4.0]  # After three batches; two were read before.
    assert [row["samples_per_s"] for row in rows] == [4.0] * 3


def test_tokens_are_the_ids_of_a_batch(make_runner, clock):
    rows, _ = run(make_runner, clock, ThroughputHook(), data=Words(), task=WordTask(), val_size=0)
    assert [row["tokens_per_s"] for row in rows] == [20.0] * 4


@pytest.mark.parametrize(("given", "wanted"), [(3, 12.0), (None, None)])
def test_tokens_by_number_and_none(make_runner, clock, given, wanted):
    hook = ThroughputHook(tokens_per_sample=given)
    more = {"data": Words(), "task": WordTask(), "val_size": 0} if given is None else {}
    rows, _ = run(make_runner, clock, hook, **more)
    assert rows[-1].get("tokens_per_s") == wanted


def test_a_number_of_operations_gives_tflops_and_their_share_of_the_peak(make_runner, clock):
    hook = ThroughputHook(flops_per_sample=5e12, peak_tflops=80)
    rows, _ = run(make_runner, clock, hook)
    assert rows[0]["tflops"] == pytest.approx(20.0)
    assert rows[0]["mfu"] == pytest.approx(0.25)


def test_with_ranks_samples_are_of_all_and_tflops_of_one(make_runner, clock, monkeypatch):
    monkeypatch.setattr("hookexp.runner.Runner.world_size", 4)
    rows, _ = run(make_runner, clock, ThroughputHook(flops_per_sample=5e12))
    assert rows[0]["samples_per_s"] == 16.0
    assert rows[0]["tflops"] == pytest.approx(20.0)


class Linear(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(4, 6)
        self.second = nn.Linear(6, 1)

    def forward(self, inputs):
        return self.second(torch.relu(self.first(inputs)))


def test_the_operations_of_the_first_batch_are_counted_once(make_runner, clock, caplog):
    caplog.set_level("INFO", "hookexp")
    hook = ThroughputHook(flops_per_sample="count")
    rows, _ = run(make_runner, clock, hook, model=Linear())
    # Two for each weight and sample, forward; as many for the gradient of each weight, and for
    # that of the hidden layer, which the inputs do not need.
    assert hook.flops_per_sample == 2 * (4 * 6 + 6) + 2 * (4 * 6 + 6) + 2 * 6
    assert rows[0]["tflops"] == pytest.approx(4.0 * hook.flops_per_sample / 1e12)
    assert caplog.text.count("flops_per_sample=132, as counted") == 1


def test_training_is_the_same_with_counting(make_runner, clock):
    _, counted = run(make_runner, clock, ThroughputHook(flops_per_sample="count"))
    plain = make_runner({}, max_epochs=2, train_size=32)
    plain.run("train")
    for name, weight in plain.model.state_dict().items():
        assert torch.equal(counted.model.state_dict()[name], weight)


def test_after_an_error_nothing_is_counted_any_more(make_runner, clock):
    class Fails(TinyTask):
        def train_step(self, model, batch):
            raise RuntimeError("boom")

    hook = ThroughputHook(flops_per_sample="count")
    with pytest.raises(RuntimeError, match="boom"):
        run(make_runner, clock, hook, task=Fails())
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None


def test_a_compiled_model_is_not_counted(make_runner, clock):
    hook = ThroughputHook(flops_per_sample="count")
    with pytest.raises(ConfigError, match=r"flops_per_sample=count: .*trainer\.compile=false"):
        run(make_runner, clock, hook, compile=True, model=TinyModel())


class Odd:
    def __len__(self):
        return 16

    def get_batch(self, indices, generator):
        return ["text"] if len(indices) else None


class OddTask(TinyTask):
    def train_step(self, model, batch):
        return {"loss": model(torch.ones(2, 4)).mean()}


def test_a_batch_without_tensors_is_passed_over(make_runner, clock):
    rows, _ = run(make_runner, clock, ThroughputHook(), data=Odd(), task=OddTask(), val_size=0)
    assert rows[0]["samples_per_s"] == 0.0


def test_operations_of_a_batch_without_tensors_are_not_counted(make_runner, clock, caplog):
    class Modes(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            depths.append(torch._C._len_torch_dispatch_stack())

    depths = []
    hook = ThroughputHook(flops_per_sample="count")
    more = {"data": Odd(), "task": OddTask(), "val_size": 0, "hooks": {"modes": Modes()}}
    rows, _ = run(make_runner, clock, hook, **more)
    assert depths == [1, 0, 0, 0]
    assert torch.utils._python_dispatch._get_current_dispatch_mode() is None
    assert caplog.text.count("flops_per_sample=count: a batch of type list has no tensor") == 1
    assert "tflops" not in rows[-1]


@pytest.mark.parametrize(
    ("name", "precision", "peak"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", 989.0),
        ("NVIDIA H100 PCIe", "fp16", 756.0),
        ("NVIDIA L40S", "bf16", 362.0),
        ("NVIDIA L40", "bf16", 181.0),
        ("NVIDIA L4", "fp16", 121.0),
        ("NVIDIA A100-SXM4-80GB", "bf16", 312.0),
        ("NVIDIA RTX A1000 Laptop GPU", "bf16", None),
        ("NVIDIA GH200 480GB", "bf16", 989.0),
        ("NVIDIA GB200", "bf16", 2500.0),
        ("NVIDIA H200", "fp32", None),
        ("Somebody's GPU", "bf16", None),
    ],
)
def test_the_peak_of_a_known_gpu(make_runner, monkeypatch, name, precision, peak):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
    runner = make_runner({}, precision=precision, max_epochs=1)
    runner.device = torch.device("cuda")
    assert throughput._peak_tflops(runner) == peak


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"tokens_per_sample": 0}, "tokens_per_sample=0: use a number above 0, or auto, null"),
        ({"flops_per_sample": "auto"}, "flops_per_sample=auto: use a number above 0, or count"),
        ({"peak_tflops": None}, "peak_tflops=None: use a number above 0, or auto"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ThroughputHook(**arguments)

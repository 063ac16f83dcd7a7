"""A second stream of batches, which a task reads itself, goes on after a resume."""

from __future__ import annotations

import pytest
import torch
from fakes import StopAt, TinyTask
from test_stream import AnewBatches, OwnBatches, Rows, own_sampler, shuffled
from torch.utils.data import DataLoader, IterableDataset

from hookexp import EndlessBatches
from hookexp.checkpoint.reading import load_checkpoint
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.optimizer import OptimizerHook
from hookexp.seed import rng_state, set_rng_state


def rows(batches, number):
    return [[*next(batches).flatten().tolist(), torch.rand(()).item()] for _ in range(number)]


def with_workers():
    return DataLoader(Rows(), batch_size=4, shuffle=True, num_workers=1)


@pytest.mark.parametrize("read_before", [0, 2, 5, 8])
@pytest.mark.parametrize("make", [shuffled, with_workers, own_sampler, OwnBatches, AnewBatches])
def test_a_state_gives_the_batches_that_were_next(make, read_before):
    torch.manual_seed(1)
    one = EndlessBatches(make())
    rows(one, read_before)
    state, generators = one.state_dict(), rng_state()
    expected = rows(one, 9)
    other = EndlessBatches(make())
    other.load_state_dict(state)
    set_rng_state(generators)
    assert rows(other, 9) == expected


class Semi(TinyTask):
    """Learns from a second data set too, whose batches are fewer and of another size."""

    read = ()

    def setup(self, runner):
        super().setup(runner)
        self.unlabelled = EndlessBatches(shuffled())

    def train_step(self, model, batch):
        second = next(self.unlabelled)[:, 1:]
        Semi.read.append(second.flatten().tolist())
        loss = super().train_step(model, batch)["loss"]
        return {"loss": loss + model(second.repeat(1, 4)).square().mean()}


@pytest.mark.parametrize("stop_at", [2, 4, 7])
def test_a_task_goes_on_in_it(make_runner, tmp_path, stop_at):
    def run(folder, *hooks, **more):
        torch.manual_seed(3)
        parts = {"optimizer": OptimizerHook(), "checkpoint": CheckpointHook(by_epoch=False)}
        parts |= {str(n): hook for n, hook in enumerate(hooks)}
        runner = make_runner(
            parts, work_dir=folder, task=Semi(), with_optimizer=False, max_epochs=3, **more
        )
        runner.run("train")

    Semi.read = []
    run(tmp_path / "whole")
    whole, Semi.read = Semi.read, []
    run(tmp_path / "cut", StopAt(stop_at))
    run(tmp_path / "cut", resume="auto")
    assert Semi.read == whole
    ends = [load_checkpoint(tmp_path / name / "iter_9.pth") for name in ("whole", "cut")]
    for key, weight in ends[0]["state_dict"].items():
        assert torch.equal(weight, ends[1]["state_dict"][key]), key


class Stateless(IterableDataset):
    def __iter__(self):
        yield from range(4)


def test_it_says_what_it_cannot_promise(caplog):
    EndlessBatches(DataLoader(Stateless()))
    assert caplog.text.count("EndlessBatches: Stateless has no state_dict") == 1
    EndlessBatches(shuffled())
    assert caplog.text.count("EndlessBatches") == 1


def test_what_can_be_read_only_once_is_refused():
    with pytest.raises(TypeError, match="read only once; give what iter\\(\\) can begin again"):
        EndlessBatches(iter([1, 2]))


def test_what_gives_nothing_is_an_error():
    with pytest.raises(ValueError, match="EndlessBatches: list gave no batch"):
        next(EndlessBatches([]))

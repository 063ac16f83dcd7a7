"""Two processes under torchrun are one run: one folder, one log, every rank in the checkpoint."""

from __future__ import annotations

import copy
import json
import os
import signal
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

from hookexp import dist
from hookexp.checkpoint.reading import load_checkpoint
from hookexp.hook import Hook
from hookexp.tasks.supervised import SupervisedTask

ROOT = Path(__file__).parent.parent
RENDEZVOUS = sys.modules["torch.distributed.rendezvous"]  # Its function has the same name.


class WithSpareParts(nn.Module):
    def __init__(self):
        super().__init__()
        self.classifier = nn.Linear(64, 10)
        self.spare = nn.Linear(3, 3)

    def forward(self, images):
        return self.classifier(images.flatten(1))


class KeepsItsOwn(SupervisedTask):
    """A centre of the outputs, their last mean and a teacher, which each rank has its own of.

    The teacher wraps a copy of the model, and looks at each batch in training mode.
    """

    def setup(self, runner):
        super().setup(runner)
        self.teacher = copy.deepcopy(runner.model)

    def __init__(self, loss, metrics):
        super().__init__(loss, metrics)
        self.centres, self.mean = [nn.BatchNorm1d(10, affine=False)], torch.zeros(())

    def train_step(self, model, batch):
        outputs = self.centres[0](model(batch[0]) + self.mean)
        with torch.no_grad():
            taught = self.teacher(batch[0]).mean()
        self.mean = outputs.detach().square().mean() + batch[1][0] + taught
        distance = (outputs - self.centres[0].running_mean).square().mean()
        return {"loss": self.loss(outputs, batch[1]) + distance}


class KillsARank(Hook):
    """As a machine that is taken away; the ranks that torchrun starts anew stay."""

    def __init__(self, rank):
        self.rank = rank

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        is_first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
        if (runner.iter, runner.rank, is_first) == (5, self.rank, True):
            os.kill(os.getpid(), signal.SIGKILL)


def torchrun(folder, *words, num_ranks=2, max_restarts=0):
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(num_ranks)]
    command += ["--max-restarts", str(max_restarts), "-m", "hookexp", *words]
    paths = f"{ROOT}{os.pathsep}{Path(__file__).parent}"
    environment = {**os.environ, "PYTHONPATH": paths, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=180
    )


@pytest.mark.parametrize(("has_gpu", "backend"), [(True, "cpu:gloo,cuda:nccl"), (False, "gloo")])
def test_objects_are_exchanged_in_the_hosts_memory(monkeypatch, has_gpu, backend):
    joined = []
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(RENDEZVOUS, "rendezvous", lambda url: iter([(None, 0, 2)]))
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, **_: joined.append(backend)
    )
    dist.init()
    assert joined == [backend]


@pytest.mark.parametrize(("on_this_machine", "is_new"), [("2", True), ("1", False)])
def test_ranks_that_are_restarted_do_not_meet_those_of_before(monkeypatch, on_this_machine, is_new):
    kept = torch.distributed.HashStore()
    kept.set_timeout(timedelta(seconds=1))
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", on_this_machine)
    monkeypatch.setattr(RENDEZVOUS, "rendezvous", lambda url: iter([(kept, 0, 2)]))
    stores = []
    monkeypatch.setattr(
        torch.distributed, "init_process_group", lambda backend, store, **_: stores.append(store)
    )
    for restart in ("0", "1"):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", restart)
        dist.init()
    stores[0].set("where rank 1 is", "there")
    assert stores[1].check(["where rank 1 is"]) is not is_new


def test_a_rank_that_waits_for_another_ends_when_it_is_told(tmp_path):
    environment = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    code = "from hookexp import dist; print('waits', flush=True); dist.init()"
    command = [
        sys.executable,
        "-c",
        f"from hookexp.signals import leave_quietly\nwith leave_quietly(): {code}",
    ]
    one = subprocess.Popen(
        command, env={**os.environ, **environment, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE
    )
    with one:
        assert one.stdout.readline() == b"waits\n"
        with pytest.raises(subprocess.TimeoutExpired):
            one.wait(timeout=3)  # It is in the midst of it by then.
        one.send_signal(signal.SIGTERM)
        try:
            assert one.wait(timeout=60) == -signal.SIGTERM
        finally:
            one.kill()


def test_ranks_that_torchrun_starts_anew_go_on(tmp_path):
    words = ["trainer.device=cpu", "sinks=none", "trainer.max_iters=8", "data.val=null"]
    words += ["hooks.checkpoint.by_epoch=false", "hooks.checkpoint.interval=2", "resume=auto"]
    kill = f"+hooks.kill={{_target_: {__name__}.KillsARank, rank: 1}}"
    done = torchrun(tmp_path, *words, f"hydra.run.dir={tmp_path / 'whole'}")
    assert done.returncode == 0, done.stderr[-3000:]
    folder = tmp_path / "killed"
    done = torchrun(tmp_path, *words, kill, f"hydra.run.dir={folder}", max_restarts=1)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "resumed after epoch 0, iteration 4" in done.stdout
    ends = [load_checkpoint(one / "iter_8.pth") for one in (tmp_path / "whole", folder)]
    for name, weight in ends[0]["state_dict"].items():
        assert torch.equal(weight, ends[1]["state_dict"][name]), name


def test_gradients_of_an_open_window_are_those_of_each_rank(tmp_path):
    words = ["trainer.device=cpu", "sinks=none", "trainer.max_iters=4", "data.val=null"]
    words += ["hooks.optimizer.cumulative_iters=4", "hooks.checkpoint.by_epoch=false"]
    words += ["hooks.checkpoint.interval=2", "param_scheduler=none", "model.dropout=0.0"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder, more in ((whole, []), (resumed, [f"resume={whole}/iter_2.pth"])):
        done = torchrun(tmp_path, *words, *more, f"hydra.run.dir={folder}")
        assert done.returncode == 0, done.stderr[-3000:]
    first, second = load_checkpoint(whole / "iter_2.pth")["optimizer"]["gradients_of_ranks"]
    assert not torch.equal(first["default"][0], second["default"][0])
    ends = [load_checkpoint(folder / "iter_4.pth") for folder in (whole, resumed)]
    for name, weight in ends[0]["state_dict"].items():
        assert torch.equal(weight, ends[1]["state_dict"][name]), name


def test_two_ranks_train_together_and_resume(tmp_path):
    words = ["trainer.device=cpu", "sinks=-tensorboard", "hooks.logger.interval=5", "name=two"]
    done = torchrun(tmp_path, *words, "trainer.max_epochs=1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("Epoch(val) [1]") == 1
    (day,) = (tmp_path / "outputs" / "two").iterdir()
    (folder,) = day.iterdir()
    checkpoint = load_checkpoint(folder / "epoch_1.pth")
    assert checkpoint["meta"]["world_size"] == 2
    assert len(checkpoint["rng"]) == 2
    rows = [json.loads(line) for line in (folder / "scalars.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [5, 10, 10]

    more = ["trainer.max_epochs=2", f"hydra.run.dir={folder}", "resume=auto"]
    done = torchrun(tmp_path, *words, *more)
    assert done.returncode == 0, done.stderr[-3000:]
    assert load_checkpoint(folder / "epoch_2.pth")["loop"]["iter"] == 20


def test_three_ranks_add_their_gradients_in_the_same_order_after_a_resume(tmp_path):
    words = ["trainer.device=cpu", "sinks=none", "trainer.max_iters=4", "data.val=null"]
    words += ["hooks.checkpoint.by_epoch=false", "hooks.checkpoint.interval=2"]
    words += ["param_scheduler=none", "trainer.deterministic=true"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder, more in ((whole, []), (resumed, [f"resume={whole}/iter_2.pth"])):
        done = torchrun(tmp_path, *words, *more, f"hydra.run.dir={folder}", num_ranks=3)
        assert done.returncode == 0, done.stderr[-3000:]
    ends = [load_checkpoint(folder / "iter_4.pth") for folder in (whole, resumed)]
    for name, weight in ends[0]["state_dict"].items():
        assert torch.equal(weight, ends[1]["state_dict"][name]), name


def test_each_rank_goes_on_with_what_its_task_keeps(tmp_path):
    words = ["trainer.device=cpu", "sinks=none", "trainer.max_iters=4", "data.val=null"]
    words += ["hooks.checkpoint.by_epoch=false", "hooks.checkpoint.interval=2"]
    words += ["param_scheduler=none", f"task._target_={__name__}.KeepsItsOwn"]
    whole, resumed = tmp_path / "whole", tmp_path / "resumed"
    for folder, more in ((whole, []), (resumed, [f"resume={whole}/iter_2.pth"])):
        done = torchrun(tmp_path, *words, *more, f"hydra.run.dir={folder}")
        assert done.returncode == 0, done.stderr[-3000:]
    ends = [load_checkpoint(folder / "iter_4.pth") for folder in (whole, resumed)]
    for name, weight in ends[0]["state_dict"].items():
        assert torch.equal(weight, ends[1]["state_dict"][name]), name
    for kept in ("values", "of_ranks"):
        first, second = ends[0]["beside"][kept]
        assert repr(first) != repr(second)
        assert repr(ends[0]["beside"][kept]) == repr(ends[1]["beside"][kept])


def test_parameters_that_no_rank_uses_are_named_with_what_to_type(tmp_path):
    words = ["trainer.device=cpu", "sinks=none", "trainer.max_iters=2", "data.val=null"]
    words += [f"model._target_={__name__}.WithSpareParts"]
    done = torchrun(tmp_path, *words)
    assert done.returncode == 1
    said = next(line for line in done.stderr.splitlines() if line.startswith("hookexp: "))
    assert "the loss did not depend on spare.weight, spare.bias, and" in said
    option = said.split()[-1]
    done = torchrun(tmp_path, *words, option)
    assert done.returncode == 0, done.stderr[-3000:]


def test_two_ranks_prove_that_they_resume(tmp_path):
    words = ["trainer.device=cpu", "mode=verify_resume", "trainer.verify_iters=2", "model.width=4"]
    done = torchrun(tmp_path, *words, "hooks.logger.interval=1")
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("verified: a run resumed after 2 of 4 iterations") == 1

"""What the hub knows about a run."""

from __future__ import annotations

import torch
from fakes import TinyModel

from hookexp.hooks.runtime_info import RuntimeInfoHook


def test_infos_and_scalars_of_a_run(make_runner):
    runner = make_runner({"runtime_info": RuntimeInfoHook()}, max_epochs=2, seed=5)
    runner.run("train")
    hub = runner.message_hub
    assert hub.get_info("seed") == 5
    assert hub.get_info("experiment_name") == "tiny"
    assert hub.get_info("torch_version") == str(torch.__version__)
    assert (hub.get_info("max_epochs"), hub.get_info("max_iters")) == (2, 6)
    assert (hub.get_info("epoch"), hub.get_info("iter")) == (1, 5)
    assert len(hub.get_scalar("train/loss").values) == 6
    assert len(hub.get_scalar("val/accuracy").values) == 2


def test_the_lr_of_every_parameter_group(make_runner):
    model = TinyModel()
    runner = make_runner({"runtime_info": RuntimeInfoHook()}, model=model, max_epochs=1)
    extra = torch.nn.Parameter(torch.zeros(1))
    runner.optimizer.add_param_group({"params": [extra], "lr": torch.tensor(0.5)})
    runner.run("train")
    assert list(runner.message_hub.get_scalar("train/lr").values) == [0.1] * 3
    second = runner.message_hub.get_scalar("train/lr/1").values
    assert [float(v) for v in second] == [0.5] * 3
    assert second[0] is not runner.optimizer.param_groups[1]["lr"]


def test_metrics_that_are_no_scalars_become_infos(make_runner):
    runner = make_runner()
    RuntimeInfoHook().after_val_epoch(runner, metrics={"confusion": [[1, 0], [0, 1]], "acc": 0.5})
    assert runner.message_hub.get_info("val/confusion") == [[1, 0], [0, 1]]
    assert runner.message_hub.get_scalar("val/acc").current() == 0.5

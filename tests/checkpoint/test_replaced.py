"""Parameters that come in training are told: a resumed run does not have them when it loads."""

from __future__ import annotations

import pytest
from fakes import TinyModel, TinyTask
from torch import nn

from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook


class InEpoch(Hook):
    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter == 1:
            self.change(runner)


class NewLayer(InEpoch):
    def change(self, runner):
        runner.model.outer = nn.Linear(8, 1)


class NewValues(InEpoch):
    def change(self, runner):
        for parameter in runner.model.parameters():
            parameter.data = parameter.data.clone()


class NewGroup(InEpoch):
    def change(self, runner):
        runner.optimizer.add_param_group({"params": [*nn.Linear(2, 2).parameters()]})


class NewGroupInTime(Hook):
    def before_run(self, runner):
        runner.optimizer.add_param_group({"params": [*runner.task.head.parameters()]})


class WithHead(TinyTask):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(2, 2)


@pytest.mark.parametrize(
    ("hook", "told"),
    [
        (NewLayer(), ["model.outer.weight has become another parameter in training"]),
        (NewGroup(), ["optimizer: group 1 has come in training"]),
        (NewValues(), []),
        (NewGroupInTime(), []),
    ],
)
def test_what_comes_in_training_is_told_once(make_runner, tmp_path, caplog, hook, told):
    hooks = {"checkpoint": CheckpointHook(interval=1, by_epoch=False), "mine": hook}
    runner = make_runner(hooks, task=WithHead(), model=TinyModel(), work_dir=tmp_path, max_epochs=2)
    runner.run("train")
    said = [message for message in caplog.messages if "in training: a" in message]
    assert [message.partition(": a ")[0] for message in said] == told

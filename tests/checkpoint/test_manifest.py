"""What a checkpoint has and a resumed run has not, or the other way round, is never passed over."""

from __future__ import annotations

import logging
import re

import pytest
import torch
from fakes import StopAt, TinyData, TinyModel
from torch import nn
from torch.utils.data import DataLoader

from hookexp.checkpoint.reading import load_checkpoint
from hookexp.checkpoint.store import CheckpointStore
from hookexp.data.stream import BatchStream
from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.early_stopping import EarlyStoppingHook
from hookexp.hooks.ema import EMAHook
from hookexp.optim.plateau import ReduceOnPlateauParamScheduler
from hookexp.optim.wrapper import OptimWrapper


class Counting(Hook):
    def __init__(self):
        self.count = 0

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.count += 1

    def state_dict(self):
        return {"count": self.count}

    def load_state_dict(self, state):
        self.count = state["count"]


@pytest.fixture
def run(make_runner, tmp_path):
    """A run in one folder, three batches to an epoch; the second call continues the first."""

    def run(hooks=None, after=lambda runner: None, **more):
        hooks = {"checkpoint": CheckpointHook(), **(hooks or {})}
        more = {"max_epochs": 2, "work_dir": tmp_path / "run", **more}
        runner = make_runner(hooks, **more)
        after(runner)
        runner.run("train")
        return runner

    return run


@pytest.fixture
def warnings_of_resume(caplog):
    caplog.set_level(logging.WARNING, "hookexp")
    return lambda: [m for m in caplog.messages if m.startswith("resume: ")]


# -- hooks and schedulers ---------------------------------------------------------------------


def test_a_hook_that_was_added_starts_fresh_in_one_line(run, warnings_of_resume):
    run(max_epochs=1)
    assert run({"counting": Counting()}, resume="auto").hooks["counting"].count == 3
    assert warnings_of_resume() == [
        "resume: hooks.counting: has no state in the checkpoint, starts fresh"
    ]


def test_a_hook_that_was_taken_out_is_an_error_or_an_explicit_choice(run, warnings_of_resume):
    run({"counting": Counting()}, max_epochs=1)
    with pytest.raises(ConfigError) as caught:
        run(resume="auto")
    assert "hooks.counting: has a state in the checkpoint and is not in this run" in str(
        caught.value
    )
    assert "'resume_ignore=[hooks.counting]'" in str(caught.value)
    assert run(resume="auto", resume_ignore=("hooks.counting",)).iter == 6
    assert warnings_of_resume() == ["resume: hooks.counting: its state is left out (resume_ignore)"]


def test_a_hook_that_is_there_can_be_begun_anew(run):
    run({"counting": Counting()}, max_epochs=1)
    fresh = run({"counting": Counting()}, resume="auto", resume_ignore=("hooks.counting",))
    assert fresh.hooks["counting"].count == 3


def test_a_state_that_its_hook_does_not_take_names_the_hook(run):
    class Changed(Counting):
        def load_state_dict(self, state):
            self.count = state["total"]

    run({"counting": Counting()}, max_epochs=1)
    with pytest.raises(ConfigError, match=r"hooks\.counting: does not take .*KeyError: 'total'"):
        run({"counting": Changed()}, resume="auto")


def test_a_hook_that_saves_and_cannot_load_is_refused_before_the_first_batch(run):
    class SavesOnly(Hook):
        def state_dict(self):
            return {"count": 1}

    with pytest.raises(ConfigError, match=r"hooks\.mine: SavesOnly has a state_dict and no load_"):
        run({"mine": SavesOnly()})


def test_without_averages_training_goes_on_with_the_raw_weights(run, tmp_path):
    """`state_dict` of such a checkpoint holds the averages."""
    run({"ema": EMAHook(momentum=0.01)}, max_epochs=1)
    raw = load_checkpoint(tmp_path / "run" / "epoch_1.pth")["ema_state_dict"]

    class Watch(Hook):
        def before_train(self, runner):
            self.seen = {k: v.clone() for k, v in runner.model.state_dict().items()}

    with pytest.raises(ConfigError, match=r"hooks\.ema: has a state"):
        run(resume="auto")
    seen = run({"watch": Watch()}, resume="auto", resume_ignore=("hooks.ema",)).hooks["watch"].seen
    assert all(torch.equal(seen[name], raw[name]) for name in raw)


def test_schedulers_that_came_and_went(run, warnings_of_resume):
    def plateau():
        return ReduceOnPlateauParamScheduler(monitor="loss")

    run(max_epochs=1, param_schedulers={"old": plateau()})
    with pytest.raises(ConfigError, match=r"param_scheduler\.old: has a state in the checkpoint"):
        run(resume="auto", param_schedulers={"new": plateau()})
    run(
        resume="auto",
        param_schedulers={"new": plateau()},
        resume_ignore=("param_scheduler.old",),
    )
    assert warnings_of_resume() == [
        "resume: param_scheduler.old: its state is left out (resume_ignore)",
        "resume: param_scheduler.new: has no state in the checkpoint, starts fresh",
    ]


# -- the optimizer ----------------------------------------------------------------------------


class Pair(nn.Module):
    """Two layers of one shape, in either order."""

    def __init__(self, order=("first", "second"), names=("first", "second")):
        super().__init__()
        for name in order:
            self.add_module(names[("first", "second").index(name)], nn.Linear(4, 4))
        self.outer = nn.Linear(4, 1)
        self.names = names

    def forward(self, inputs):
        first, second = (getattr(self, name) for name in self.names)
        return self.outer(second(torch.relu(first(inputs))))


def adam_over(parameters_of):
    def after(runner):
        optimizer = torch.optim.Adam(parameters_of(runner.model), lr=0.01)
        runner.optim_wrapper = OptimWrapper({"default": optimizer}, runner.optim_wrapper.scaler)
        runner.optim_wrapper.states.name_parameters(runner.model)

    return after


def test_parameters_in_another_order_find_their_states_by_name(run, tmp_path):
    def straight(model):
        return list(model.parameters())

    def reversed_in_two_groups(model):
        parameters = list(model.parameters())[::-1]
        return [{"params": parameters[:2]}, {"params": parameters[2:]}]

    torch.manual_seed(1)
    whole = run(model=Pair(), after=adam_over(straight), work_dir=tmp_path / "whole")
    torch.manual_seed(1)
    cut = run({"stop": StopAt(4)}, model=Pair(), after=adam_over(straight))
    assert cut.iter == 4
    other = Pair(order=("second", "first"))
    rest = run(model=other, after=adam_over(reversed_in_two_groups), resume="auto")
    for name, value in whole.model.state_dict().items():
        assert torch.equal(value, rest.model.state_dict()[name]), name
    state = rest.optimizer.state
    for name, parameter in whole.model.named_parameters():
        twin = dict(rest.model.named_parameters())[name]
        assert torch.equal(whole.optimizer.state[parameter]["exp_avg"], state[twin]["exp_avg"])


def test_a_renamed_layer_is_an_error_that_names_it(run):
    run(model=Pair(), max_epochs=1)
    with pytest.raises(ConfigError) as caught:
        run(model=Pair(names=("first", "renamed")), resume="auto")
    assert "only in the model: renamed.weight" in str(caught.value)
    assert "only in the checkpoint: second.weight" in str(caught.value)


def test_a_parameter_the_optimizer_did_not_have(run):
    def without_first(model):
        return [p for name, p in model.named_parameters() if not name.startswith("first")]

    run(model=Pair(), after=adam_over(without_first), max_epochs=1)
    message = r"optimizer: 'default' has only in this run: first\.weight, first\.bias"
    with pytest.raises(ConfigError, match=message):
        run(model=Pair(), after=adam_over(nn.Module.parameters), resume="auto")
    rest = run(
        model=Pair(),
        after=adam_over(nn.Module.parameters),
        resume="auto",
        resume_ignore=("optimizer",),
    )
    steps = {n: rest.optimizer.state[p]["step"].item() for n, p in rest.model.named_parameters()}
    assert steps["first.weight"] == 3 and steps["second.weight"] == 6


def test_another_optimizer_is_an_error_or_starts_fresh(run):
    run(max_epochs=1)
    adam = adam_over(nn.Module.parameters)
    with pytest.raises(ConfigError, match=r"'default' was of class SGD and is of class Adam"):
        run(after=adam, resume="auto")
    assert run(after=adam, resume="auto", resume_ignore=("optimizer",)).iter == 6


class Progressing(torch.optim.SGD):
    """Keeps its progress in its groups, as optimizers without schedules do."""

    def __init__(self, params, lr):
        super().__init__(params, lr)
        for group in self.param_groups:
            group.setdefault("k", 0)

    def step(self, closure=None):
        for group in self.param_groups:
            group["k"] += 1
        return super().step(closure)


@pytest.mark.parametrize(("lr", "expected"), [(0.1, 0.05), (0.2, 0.2)])
def test_groups_keep_their_progress_and_the_config_what_it_changed(lr, expected):
    def wrapper(lr):
        weight = nn.Parameter(torch.ones(2))
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        return OptimWrapper({"default": Progressing([weight], lr)}, scaler)

    before = wrapper(0.1)
    before.backward(before.param_groups[0]["params"][0].sum())
    before.step()
    before.param_groups[0]["lr"] = 0.05
    after = wrapper(lr)
    after.load_state_dict(before.state_dict())
    assert after.param_groups[0]["k"] == 1
    assert after.param_groups[0]["lr"] == expected


# -- precision, batches, generators -----------------------------------------------------------


def test_the_loss_scale(run, warnings_of_resume):
    run(max_epochs=1)
    run(resume="auto", precision="fp16")
    assert warnings_of_resume() == ["resume: scaler: is not in the checkpoint, starts fresh"]
    with pytest.raises(ConfigError, match=r"scaler: the checkpoint is of .*precision=fp16"):
        run(resume="auto", max_epochs=3)
    assert run(resume="auto", max_epochs=3, resume_ignore=("scaler",)).epoch == 3


def test_another_batch_size_matters_inside_an_epoch(run):
    run({"stop": StopAt(4)})
    with pytest.raises(ConfigError, match=r"sampler: data\.batch_size was 8 and is 4"):
        run(resume="auto", batch_size=4)
    assert run(resume="auto", batch_size=4, resume_ignore=("sampler",)).epoch == 2


def test_another_batch_size_at_the_end_of_an_epoch_does_not(run, warnings_of_resume):
    run(max_epochs=1)
    assert run(resume="auto", batch_size=4).iter == 3 + 6
    assert warnings_of_resume() == []


def with_ready_batches(batch_size=8, limit=None):
    def after(runner):
        loader = DataLoader(TinyData(24), batch_size=batch_size)
        runner._parts.train_loader = runner.train_loop.dataloader = BatchStream(loader, limit=limit)

    return after


@pytest.mark.parametrize(
    ("now", "said"),
    [
        ({"batch_size": 4}, "sampler: data.batch_size was 8 and is 4"),
        ({"limit": 2}, "sampler: trainer.limit_train_batches was None and is 2"),
    ],
)
def test_other_batches_of_ones_own_matter_inside_an_epoch_too(run, now, said):
    run({"stop": StopAt(1)}, after=with_ready_batches())
    with pytest.raises(ConfigError, match=re.escape(said)):
        run(resume="auto", after=with_ready_batches(**now))
    rest = run(resume="auto", after=with_ready_batches(**now), resume_ignore=("sampler",))
    assert rest.epoch == 2


def test_what_is_no_number_is_no_batch_size(run):
    class Batches(list):
        batch_size = object()

    batches = Batches(DataLoader(TinyData(24), batch_size=8))

    def after(runner):
        runner._parts.train_loader = runner.train_loop.dataloader = BatchStream(batches)

    run({"stop": StopAt(1)}, after=after)
    assert run(resume="auto", after=after).epoch == 2


def test_another_seed_is_an_error_and_an_open_one_is_that_of_before(run):
    def left_open(runner):
        runner.cfg = {"seed": None}

    run(max_epochs=1)
    with pytest.raises(ConfigError, match=r"sampler: seed was 0 and is 5"):
        run(resume="auto", seed=5)
    rest = run(resume="auto", seed=5, after=left_open)
    assert rest.seed == rest.train_dataloader.batch_sampler.seed == 0


def change(tmp_path, edit):
    path = tmp_path / "run" / "epoch_1.pth"
    checkpoint = load_checkpoint(path)
    edit(checkpoint)
    CheckpointStore(path.parent).save(checkpoint, path.name)


def test_another_number_of_processes(run, tmp_path):
    run(max_epochs=1)
    change(tmp_path, lambda checkpoint: checkpoint["rng"].append(checkpoint["rng"][0]))
    with pytest.raises(ConfigError, match=r"rng: is of 2 processes and this run has 1"):
        run(resume="auto")
    assert run(resume="auto", resume_ignore=("rng",)).epoch == 2


def test_gpus_that_neither_run_uses_are_not_told_of(run, monkeypatch, warnings_of_resume):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    run(max_epochs=1)
    run(resume="auto")
    assert warnings_of_resume() == []
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: [])
    run(resume="auto", max_epochs=3)
    assert warnings_of_resume() == ["resume: rng: is of 0 GPUs and this process has 2"]


# -- all at once ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "edit",
    [
        lambda c: c.update(loop=3),
        lambda c: c["loop"].pop("phase"),
        lambda c: c.update(hooks=["x"]),
        lambda c: c.update(optimizer={}),
        lambda c: c.update(optimizer=torch.zeros(2)),
        lambda c: c.update(rng=[{}]),
        lambda c: c.update(rng=None),
        lambda c: c.pop("sampler"),
        lambda c: c.update(sampler=7),
        lambda c: c.update(param_schedulers=None),
        lambda c: c.update(state_dict=[1]),
        lambda c: c["state_dict"].update({"outer.bias": "x"}),
        lambda c: c["state_dict"].update({"outer.bias": torch.zeros(1).to_sparse()}),
    ],
)
def test_a_refused_checkpoint_leaves_the_model_as_it_was(make_runner, run, tmp_path, edit):
    run(max_epochs=1)
    change(tmp_path, edit)
    runner = make_runner(
        {"checkpoint": CheckpointHook()}, work_dir=tmp_path / "run", max_epochs=2, resume="auto"
    )
    before = {k: v.clone() for k, v in runner.model.state_dict().items()}
    with pytest.raises(ConfigError, match=r"epoch_1\.pth"):
        runner.run("train")
    assert all(torch.equal(v, before[k]) for k, v in runner.model.state_dict().items())
    assert runner.iter == 0


def test_all_that_differs_is_said_at_once_and_nothing_is_loaded(make_runner, run, tmp_path):
    run({"counting": Counting(), "stop": StopAt(1)}, precision="fp16")
    runner = make_runner(
        {"checkpoint": CheckpointHook(), "stop": EarlyStoppingHook(monitor="loss")},
        work_dir=tmp_path / "run",
        batch_size=4,
        resume="auto",
        model=TinyModel(),
    )
    before = runner.model.inner.weight.clone()
    with pytest.raises(ConfigError) as caught:
        runner.run("train")
    assert "'resume_ignore=[hooks.counting, scaler, sampler]'" in str(caught.value)
    assert torch.equal(runner.model.inner.weight, before)

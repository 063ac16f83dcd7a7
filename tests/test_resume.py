"""A run that was stopped and resumed is the run that was not, bit for bit."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from fakes import Recorder, TinyModel
from torch import nn

from hookexp.checkpoint import snapshot
from hookexp.checkpoint.reading import load_checkpoint
from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.ema import EMAHook
from hookexp.hooks.optimizer import OptimizerHook
from hookexp.hooks.param_scheduler import ParamSchedulerHook
from hookexp.hooks.sampler_seed import DistSamplerSeedHook
from hookexp.optim.param_schedulers import CosineAnnealingParamScheduler, StepParamScheduler


class Noisy(TinyModel):
    """Dropout, so that the generator of torch is part of the state."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.3)

    def forward(self, inputs):
        return super().forward(self.dropout(inputs))


class StopAt(Hook):
    def __init__(self, iteration: int) -> None:
        self.iteration = iteration

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            runner.state.stop("told to", urgent=True)


def parts(cumulative_iters: int = 1) -> dict[str, Any]:
    return {
        "optimizer": OptimizerHook(cumulative_iters=cumulative_iters),
        "sampler_seed": DistSamplerSeedHook(),
        "param_scheduler": ParamSchedulerHook(),
        "checkpoint": CheckpointHook(),
        "ema": EMAHook(momentum=0.1),
    }


def settings(**budget: int) -> dict[str, Any]:
    cosine = CosineAnnealingParamScheduler(by_epoch=False)
    return {
        "with_optimizer": False,
        "model": Noisy(),
        "param_schedulers": {"cosine": cosine},
        **budget,
    }


def assert_equal(one: Any, two: Any, path: str = "checkpoint") -> None:
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two), path
    elif isinstance(one, dict):
        assert list(one) == list(two), path
        for key in one:
            assert_equal(one[key], two[key], f"{path}.{key}")
    elif isinstance(one, (list, tuple)):
        assert len(one) == len(two), path
        for index, (a, b) in enumerate(zip(one, two, strict=True)):
            assert_equal(a, b, f"{path}[{index}]")
    else:
        assert one == two, path


def assert_same_run(folder_one, folder_two, name: str) -> None:
    one, two = load_checkpoint(folder_one / name), load_checkpoint(folder_two / name)
    for checkpoint in (one, two):
        del checkpoint["meta"], checkpoint["message_hub"]
        # Which files are kept depends on where a run was stopped.
        del checkpoint["hooks"]["checkpoint"]
    assert_equal(one, two)


@pytest.mark.parametrize("stop_at", [1, 3, 4, 5, 6])
@pytest.mark.parametrize("cumulative_iters", [1, 2])
def test_by_epochs(make_runner, tmp_path, stop_at, cumulative_iters):
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    torch.manual_seed(0)
    make_runner(parts(cumulative_iters), work_dir=whole, **settings(max_epochs=3)).run("train")
    torch.manual_seed(0)
    stopped = {**parts(cumulative_iters), "stop": StopAt(stop_at)}
    make_runner(stopped, work_dir=cut, **settings(max_epochs=3)).run("train")
    torch.manual_seed(1)
    rest = make_runner(
        parts(cumulative_iters), work_dir=cut, resume="auto", seed=0, **settings(max_epochs=3)
    )
    rest.run("train")
    assert rest.resumed
    assert_same_run(whole, cut, "epoch_3.pth")


@pytest.mark.parametrize("stop_at", [1, 4, 7])
def test_by_iterations(make_runner, tmp_path, stop_at):
    whole, cut = tmp_path / "whole", tmp_path / "cut"

    def run(folder, hooks, **more):
        by_iter = {**hooks, "checkpoint": CheckpointHook(by_epoch=False, interval=100)}
        torch.manual_seed(0)
        runner = make_runner(
            by_iter, work_dir=folder, val_interval=4, **settings(max_iters=9), **more
        )
        runner.run("train")

    run(whole, parts())
    run(cut, {**parts(), "stop": StopAt(stop_at)})
    run(cut, parts(), resume="auto")
    assert_same_run(whole, cut, "iter_9.pth")


class DrawsAndCounts(Hook):
    """Its state and the generators move when it is told of a save."""

    def __init__(self):
        self.num_saves = 0

    def before_save_checkpoint(self, runner, checkpoint):
        self.num_saves += 1
        torch.rand(3)

    def state_dict(self):
        return {"num_saves": self.num_saves}

    def load_state_dict(self, state):
        self.num_saves = state["num_saves"]


class EvaluatesItsDropout(Hook):
    """A part in another mode than the rest, for good."""

    def before_train(self, runner):
        runner.model.dropout.eval()


class ChangesMomentum(Hook):
    """What nothing schedules: halved when training begins, and less in each epoch."""

    def before_train(self, runner):
        runner.optimizer.param_groups[0]["momentum"] *= 0.5

    def before_train_epoch(self, runner):
        runner.optimizer.param_groups[0]["momentum"] *= 0.9


@pytest.mark.parametrize("hook", [DrawsAndCounts, EvaluatesItsDropout, ChangesMomentum])
def test_what_a_hook_of_the_users_does(make_runner, tmp_path, hook):
    def run(folder, hooks, **more):
        every = CheckpointHook(by_epoch=False, interval=2)
        torch.manual_seed(0)
        make_runner(
            {**parts(), "checkpoint": every, "hook": hook(), **hooks},
            work_dir=folder,
            **settings(max_epochs=4),
            **more,
        ).run("train")

    run(tmp_path / "whole", {})
    # As if killed right after the save of iteration 8.
    run(tmp_path / "cut", {"stop": StopAt(8)})
    run(tmp_path / "cut", {}, resume="auto")
    assert_same_run(tmp_path / "whole", tmp_path / "cut", "iter_12.pth")


def test_what_a_hook_says_otherwise_than_before_is_as_it_says(make_runner, tmp_path):
    class Momentum(Hook):
        def __init__(self, value):
            self.value = value

        def before_train(self, runner):
            runner.optimizer.param_groups[0]["momentum"] = self.value

    def run(value, epochs, **more):
        hooks = {**parts(), "momentum": Momentum(value)}
        runner = make_runner(hooks, work_dir=tmp_path, **settings(max_epochs=epochs), **more)
        runner.run("train")
        return runner.optimizer.param_groups[0]["momentum"]

    assert run(0.5, 1) == 0.5
    assert run(0.8, 2, resume="auto") == 0.8


def test_a_summary_of_before_does_not_end_a_run_that_was_begun_again(make_runner, tmp_path):
    make_runner(parts(), work_dir=tmp_path, **settings(max_epochs=2)).run("train")
    seen = []

    class Look(Hook):
        def before_train(self, runner):
            seen.append((tmp_path / "summary.json").exists())

    again = {**parts(), "look": Look()}
    make_runner(
        again, work_dir=tmp_path, resume=str(tmp_path / "epoch_1.pth"), **settings(max_epochs=2)
    ).run("train")
    assert seen == [False] and (tmp_path / "summary.json").exists()


def test_a_validation_before_the_first_iteration_is_made_once(make_runner, tmp_path):
    class SaveAfterIt(Hook):
        def after_val(self, runner):
            if runner.iter == 0:
                runner.save_checkpoint("begin.pth")

    recorder = Recorder()
    more = {**settings(max_epochs=1), "val_begin": 0}
    make_runner({**parts(), "save": SaveAfterIt()}, work_dir=tmp_path, **more).run("train")
    rest = make_runner(
        {**parts(), "recorder": recorder}, resume=str(tmp_path / "begin.pth"), **more
    )
    rest.run("train")
    assert recorder.points.count("before_val") == 1


class EndAt(Hook):
    """Ends a run for good, as early stopping does; what comes next it may be told to do as well."""

    def __init__(self, iteration, then=lambda state: None):
        self.iteration = iteration
        self.then = then

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        if runner.iter + 1 == self.iteration:
            runner.state.stop("enough is known")
            self.then(runner.state)


@pytest.mark.parametrize("is_told_to_leave", [False, True])
@pytest.mark.parametrize(("epochs", "end"), [(3, 4), (4, 12)])
def test_a_run_that_was_killed_when_it_had_decided_to_end(
    make_runner, tmp_path, epochs, end, is_told_to_leave
):
    """Its last checkpoint is written; the summary, which would say so, is not."""
    end_at = EndAt(
        4, lambda state: state.stop("SIGTERM", urgent=True) if is_told_to_leave else None
    )
    first = make_runner({**parts(), "end": end_at}, work_dir=tmp_path, **settings(max_epochs=3))
    assert first.run("train").is_final
    (tmp_path / "summary.json").unlink()
    rest = make_runner(parts(), work_dir=tmp_path, resume="auto", **settings(max_epochs=epochs))
    summary = rest.run("train")
    assert rest.resumed and rest.iter == end
    if end == 4:
        assert (summary.status, summary.reason, summary.is_final) == (
            "stopped",
            "enough is known",
            True,
        )


def test_an_evaluation_of_a_run_that_ended_is_an_evaluation(make_runner, tmp_path):
    hooks = {**parts(), "end": EndAt(4)}
    make_runner(hooks, work_dir=tmp_path, **settings(max_epochs=3)).run("train")
    runner = make_runner(parts(), work_dir=tmp_path, resume="auto", **settings(max_epochs=3))
    assert runner.run("val").status == "finished"


def test_gradients_of_other_ranks_are_averaged_where_there_is_one():
    saved = [
        {"default": [torch.tensor([1.0, 2.0]), None, None]},
        {"default": [torch.tensor([3.0, 6.0]), torch.tensor([4.0]), None]},
    ]
    first, second, third = snapshot._gradients_of_this_rank(saved)["default"]
    assert first.tolist() == [2.0, 4.0] and second.tolist() == [2.0] and third is None
    assert snapshot._gradients_of_this_rank(saved[1:]) is saved[1]


@pytest.mark.parametrize("as_list", [True, False])
def test_gradients_are_read_as_they_were_written_before(make_runner, tmp_path, as_list):
    hooks = {**parts(cumulative_iters=3), "stop": StopAt(2)}
    runner = make_runner(hooks, work_dir=tmp_path, **settings(max_epochs=3))
    runner.run("train")
    checkpoint = load_checkpoint(tmp_path / "iter_2.pth")
    gradients = checkpoint["optimizer"]["gradients"]
    if as_list:
        checkpoint["optimizer"]["gradients"] = [gradients]
    for parameter in runner.model.parameters():
        parameter.grad = None
    snapshot.restore_run(runner, checkpoint)
    saved = [g for g in gradients["default"] if g is not None]
    held = [p.grad for p in runner.model.parameters() if p.grad is not None]
    assert saved and all(map(torch.equal, saved, held))


def test_a_checkpoint_holds_the_gradients_of_an_open_window_once(make_runner, tmp_path):
    hooks = {**parts(cumulative_iters=3), "stop": StopAt(2)}
    make_runner(hooks, work_dir=tmp_path, **settings(max_epochs=3)).run("train")
    optimizer = load_checkpoint(tmp_path / "iter_2.pth")["optimizer"]
    assert isinstance(optimizer["gradients"]["default"][0], torch.Tensor)
    assert "gradients_of_ranks" not in optimizer


def test_a_validation_that_is_due_when_a_run_ends_is_made_after_a_resume(make_runner, tmp_path):
    def run(more, **resume):
        by_iter = {**parts(), "checkpoint": CheckpointHook(by_epoch=False, interval=100), **more}
        runner = make_runner(
            by_iter, work_dir=tmp_path, val_interval=3, **settings(max_iters=9), **resume
        )
        return runner, runner.run("train")

    _, cut = run({"end": EndAt(3, lambda state: state.stop("SIGTERM", urgent=True))})
    assert not cut.is_final
    recorder = Recorder()
    rest, summary = run({"recorder": recorder}, resume="auto")
    assert rest.iter == 3 and summary.is_final
    assert recorder.points.count("after_val_epoch") == 1


def test_a_checkpoint_that_is_named_goes_on_though_its_run_had_ended(make_runner, tmp_path):
    hooks = {**parts(), "end": EndAt(4)}
    make_runner(hooks, work_dir=tmp_path, **settings(max_epochs=3)).run("train")
    named = str(tmp_path / "iter_4.pth")
    rest = make_runner(parts(), work_dir=tmp_path / "b", resume=named, **settings(max_epochs=3))
    rest.run("train")
    assert rest.iter == 9


def test_a_resume_in_mid_epoch_fires_the_openings_again_then_goes_on(make_runner, tmp_path):
    stopped = {"checkpoint": CheckpointHook(), "stop": StopAt(4)}
    make_runner(stopped, work_dir=tmp_path / "r", max_epochs=2).run("train")
    recorder = Recorder()
    rest = make_runner(
        {"checkpoint": CheckpointHook(), "recorder": recorder},
        work_dir=tmp_path / "r",
        max_epochs=2,
        resume="auto",
    )
    rest.run("train")
    assert recorder.calls[:5] == [
        ("before_run", 0, 0),
        ("after_load_checkpoint", 0, 0),
        ("before_train", 1, 4),
        ("before_train_epoch", 1, 4),
        ("before_train_iter", 1, 4),
    ]
    assert recorder.points.count("before_train_iter") == 2


def test_no_skipped_sample_is_read(make_runner, tmp_path):
    stopped = {"checkpoint": CheckpointHook(), "stop": StopAt(2)}
    make_runner(stopped, work_dir=tmp_path / "r", max_epochs=1).run("train")
    rest = make_runner(
        {"checkpoint": CheckpointHook()}, work_dir=tmp_path / "r", max_epochs=1, resume="auto"
    )
    rest.run("train")
    assert rest.train_dataloader.dataset.num_read == 8


@pytest.mark.parametrize("stop_at", [2, 4, 7])
def test_no_skipped_sample_is_read_in_a_run_by_iterations(make_runner, tmp_path, stop_at):
    def run(hooks, **more):
        by_iter = {**hooks, "checkpoint": CheckpointHook(by_epoch=False, interval=100)}
        runner = make_runner(by_iter, work_dir=tmp_path / "r", max_iters=9, **more)
        runner.run("train")
        return runner.train_dataloader.dataset.num_read

    assert run({"stop": StopAt(stop_at)}) == 8 * stop_at
    assert run({}, resume="auto") == 8 * (9 - stop_at)


def test_auto_starts_fresh_in_an_empty_folder(make_runner):
    runner = make_runner({"checkpoint": CheckpointHook()}, max_epochs=1, resume="auto")
    runner.run("train")
    assert not runner.resumed and runner.epoch == 1


class SavesWithItsEpoch(Hook):
    def after_train_epoch(self, runner):
        runner.save_checkpoint("end.pth")


def test_a_run_by_iterations_that_is_extended_is_still_one_epoch(make_runner, tmp_path):
    make_runner({"saves": SavesWithItsEpoch()}, max_iters=3).run("train")
    resume = str(tmp_path / "run" / "end.pth")
    longer = make_runner(max_iters=5, resume=resume).run("train")
    assert (longer.epoch, longer.iter) == (1, 5)
    over = make_runner(max_iters=3, resume=resume).run("train")
    assert (over.epoch, over.iter) == (1, 3)


def test_extending_a_run_stretches_its_schedule(make_runner, tmp_path):
    make_runner(parts(), work_dir=tmp_path / "r", **settings(max_epochs=2)).run("train")
    longer = make_runner(parts(), work_dir=tmp_path / "r", resume="auto", **settings(max_epochs=4))
    lrs = []

    class Watch(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            lrs.append(runner.optim_wrapper.get_lr()["lr"][0])

    longer.register_hook(Watch())
    longer.run("train")
    assert longer.epoch == 4
    assert lrs[0] == pytest.approx(0.05)
    assert lrs == sorted(lrs, reverse=True)


class SetsTheLr(Hook):
    """Writes into the parameter groups and keeps nothing itself."""

    priority = 80  # After the schedulers.

    def __init__(self, point: str) -> None:
        def set_lr(runner, **kwargs):
            for group in runner.optim_wrapper.param_groups:
                group["lr"] *= 0.7

        self._point = point
        setattr(self, point, set_lr)

    def get_triggered_stages(self):
        return [self._point]


@pytest.mark.parametrize("stop_at", [2, 4])
@pytest.mark.parametrize("point", ["before_train", "before_train_epoch", "after_train_iter"])
def test_what_a_hook_makes_of_a_scheduled_value(make_runner, tmp_path, point, stop_at):
    def run(folder, hooks, **more):
        step = StepParamScheduler(step_size=1, gamma=0.5, by_epoch=True)
        torch.manual_seed(0)
        runner = make_runner(
            {**parts(), "sets": SetsTheLr(point), **hooks},
            work_dir=tmp_path / folder,
            **{**settings(max_epochs=3), "param_schedulers": {"step": step}},
            **more,
        )
        runner.run("train")

    run("whole", {})
    run("cut", {"stop": StopAt(stop_at)})
    run("cut", {}, resume="auto")
    assert_same_run(tmp_path / "whole", tmp_path / "cut", "epoch_3.pth")


@pytest.mark.parametrize("change", [{"gamma": 0.1}, {"lr": 0.2}])
def test_a_schedule_that_was_changed_is_followed_from_the_resume_on(make_runner, tmp_path, change):
    def run(hooks, lr=0.1, gamma=0.5, **more):
        used = UsedLr()
        step = StepParamScheduler(step_size=1, gamma=gamma, by_epoch=True)
        make_runner(
            {**parts(), "sets": SetsTheLr("after_train_iter"), "used": used, **hooks},
            work_dir=tmp_path,
            lr=lr,
            **{**settings(max_epochs=3), "param_schedulers": {"step": step}},
            **more,
        ).run("train")
        return used.lrs

    run({"stop": StopAt(4)})
    lrs = run({}, resume="auto", **change)
    assert lrs[0] == pytest.approx(change.get("lr", 0.1) * change.get("gamma", 0.5))


class UsedLr(Hook):
    def __init__(self):
        self.lrs = []

    def before_optim_step(self, runner):
        self.lrs.append(runner.optim_wrapper.get_lr()["lr"][0])


def test_the_weights_alone_start_a_new_run(make_runner, tmp_path):
    make_runner({"checkpoint": CheckpointHook()}, work_dir=tmp_path / "a", max_epochs=1).run(
        "train"
    )
    recorder = Recorder()
    runner = make_runner(
        {"recorder": recorder},
        work_dir=tmp_path / "b",
        load_from=str(tmp_path / "a" / "epoch_1.pth"),
        max_epochs=1,
    )
    runner.run("train")
    assert recorder.calls[1] == ("after_load_checkpoint", 0, 0)
    assert not runner.resumed and runner.iter == 3


def test_a_checkpoint_of_another_model_lists_the_differences_and_changes_nothing(
    make_runner, tmp_path
):
    make_runner({"checkpoint": CheckpointHook()}, work_dir=tmp_path / "a", max_epochs=1).run(
        "train"
    )

    class Other(TinyModel):
        def __init__(self):
            super().__init__(width=5)
            self.extra = nn.Linear(1, 1)

    model = Other()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    runner = make_runner(model=model, load_from=str(tmp_path / "a"), max_epochs=1)
    with pytest.raises(ConfigError) as caught:
        runner.run("train")
    assert "only in the model: extra.weight (1, 1)" in str(caught.value)
    assert "inner.weight: (8, 4) in the checkpoint, (5, 4) in the model" in str(caught.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class LateBuffer(TinyModel):
    """Its buffer is of the shape of what it is given first."""

    def __init__(self, shift=None):
        super().__init__()
        self.register_buffer("shift", shift)

    def forward(self, inputs):
        if self.shift is None or len(self.shift) != inputs.shape[1]:
            self.shift = inputs.detach().mean(0)
        return super().forward(inputs - self.shift)


@pytest.mark.parametrize(
    ("shift", "difference"),
    [
        (None, r"only in the checkpoint: shift \(4\)"),
        (torch.zeros(1), r"shift: \(4\) in the checkpoint, \(1\) in the model"),
    ],
)
def test_weights_that_no_run_could_load_are_told_once_at_the_first_save(
    make_runner, caplog, shift, difference
):
    runner = make_runner(
        {"checkpoint": CheckpointHook()}, model=LateBuffer(shift), max_epochs=2, val_size=0
    )
    with caplog.at_level("WARNING"):
        runner.run("train")
    told = [message for message in caplog.messages if "since the run began" in message]
    assert len(told) == 1
    assert re.search(rf"cannot be resumed .*\n  {difference}\nRegister buffers", told[0])


class AddGroup(Hook):
    """Trains what the optimizer was not given; its group counts its steps in itself."""

    def __init__(self, lr: float = 0.05) -> None:
        self.lr = lr

    def before_run(self, runner):
        parameters = [runner.model.scale]
        runner.optimizer.add_param_group({"params": parameters, "lr": self.lr, "steps": 0})

    def after_optim_step(self, runner):
        runner.optimizer.param_groups[-1]["steps"] += 1


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.tiny = TinyModel()
        self.scale = nn.Parameter(torch.ones(4))

    def parameters(self, recurse=True):
        return self.tiny.parameters(recurse)

    def forward(self, inputs):
        return self.tiny(inputs * self.scale)


@pytest.mark.parametrize("is_old", [False, True])
def test_a_group_that_a_hook_adds_before_the_run_comes_back(make_runner, tmp_path, is_old):
    def run(lr=0.05, **more):
        torch.manual_seed(0)
        hooks = {"checkpoint": CheckpointHook(), "add": AddGroup(lr)}
        runner = make_runner(hooks, model=Scaled(), **more)
        runner.run("train")
        return runner

    run(work_dir=tmp_path / "whole", max_epochs=2)
    run(work_dir=tmp_path / "cut", max_epochs=1)
    path = tmp_path / "cut" / "epoch_1.pth"
    if is_old:
        checkpoint = load_checkpoint(path)
        del checkpoint["optimizer"]["configured"]["default"][1]
        path = path.with_name("old.pth")
        torch.save(checkpoint, path)
    run(work_dir=tmp_path / "cut", max_epochs=2, resume=str(path))
    assert_same_run(tmp_path / "whole", tmp_path / "cut", "epoch_2.pth")
    changed = run(lr=0.01, work_dir=tmp_path / "cut", max_epochs=2, resume=str(path))
    group = changed.optimizer.param_groups[1]
    assert group["steps"] == 6
    assert is_old or group["lr"] == 0.01


class OwnLayout(torch.optim.SGD):
    def state_dict(self):
        return {"base": super().state_dict()}


def test_an_optimizer_whose_state_has_a_layout_of_its_own_is_refused(make_runner):
    recorder = Recorder()
    runner = make_runner({"recorder": recorder}, max_epochs=1)
    wrapper = runner.optim_wrapper
    wrapper.optimizers["default"] = OwnLayout(runner.model.parameters(), lr=0.1)
    with pytest.raises(
        ConfigError, match=r"optimizer: OwnLayout.* no 'state' and no 'param_groups'"
    ):
        runner.run("train")
    assert "before_train" not in recorder.points


class Versioned(nn.Linear):
    """Reads weights of its first version as the transposed ones."""

    _version = 2

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *rest):
        if local_metadata.get("version", 1) < 2:
            state_dict[f"{prefix}weight"] = state_dict[f"{prefix}weight"].t()
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *rest)


@pytest.mark.parametrize("how", ["resume", "load_from"])
@pytest.mark.parametrize("hooks", [{}, {"ema": EMAHook}])
def test_modules_know_the_version_of_their_weights(make_runner, tmp_path, how, hooks):
    def run(folder, **more):
        model = nn.Sequential(Versioned(4, 4), TinyModel())
        made = {name: hook() for name, hook in hooks.items()}
        runner = make_runner(
            {"checkpoint": CheckpointHook(), **made}, work_dir=folder, model=model, **more
        )
        runner.run("train")
        return runner.model.state_dict()

    trained = run(tmp_path / "a", max_epochs=1)
    if hooks and how == "load_from":
        trained = load_checkpoint(tmp_path / "a" / "epoch_1.pth")["state_dict"]
    going_on = {"max_epochs": 1} if how == "resume" else {"max_epochs": 1, "lr": 0.0}
    loaded = run(tmp_path / "b", **{how: str(tmp_path / "a")}, **going_on)
    assert torch.equal(loaded["0.weight"], trained["0.weight"])


def test_a_folder_without_checkpoints_says_so(make_runner, tmp_path):
    with pytest.raises(ConfigError, match=r"resume=.*no checkpoint in this folder"):
        make_runner(resume=str(tmp_path), max_epochs=1).run("train")

"""The documented features of the checkpoint hook with the documented numbers, in real runs."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest
import torch
from fakes import Recorder, TinyData, TinyTask
from safetensors.torch import load_file

from hookexp.checkpoint.reading import load_checkpoint
from hookexp.checkpoint.whole_file import sha256_of
from hookexp.data.loader import MemoryLoader
from hookexp.data.sampler import BatchSampler
from hookexp.data.stream import BatchStream
from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.hook_list import HookList
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.summary import Summary


def files(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.suffix == ".pth")


def names(stem: str, numbers: list[int]) -> list[str]:
    return sorted(f"{stem}_{n}.pth" for n in numbers)


def train(make_runner, *, accuracy=None, epochs=20, hooks=None, **arguments):
    """One iteration an epoch, so that twenty epochs are quick."""
    task = TinyTask(scripted_accuracy=accuracy)
    runner = make_runner(
        {"checkpoint": CheckpointHook(**arguments), **(hooks or {})},
        task=task,
        train_size=8,
        val_size=8 if accuracy else 0,
        max_epochs=epochs,
    )
    runner.run("train")
    return runner


@pytest.mark.parametrize(
    ("epochs", "arguments", "kept"),
    [
        (20, {"interval": 5}, [5, 10, 15, 20]),
        (21, {"interval": 5}, [5, 10, 15, 20, 21]),
        (21, {"interval": 5, "save_last": False}, [5, 10, 15, 20]),
        (20, {"interval": 5, "max_keep_ckpts": 2}, [15, 20]),
        (10, {"save_begin": 5}, [5, 6, 7, 8, 9, 10]),
        (10, {"save_begin": 5, "interval": 2}, [5, 7, 9, 10]),
        (10, {"save_begin": 5, "interval": 2, "save_last": False}, [5, 7, 9]),
        (3, {"interval": -1}, [3]),
        (3, {"interval": -1, "save_last": False}, []),
    ],
)
def test_which_epochs_are_saved_and_kept(make_runner, epochs, arguments, kept):
    runner = train(make_runner, epochs=epochs, **arguments)
    assert files(runner.work_dir) == names("epoch", kept)
    if kept:
        pointer = (runner.work_dir / "last_checkpoint").read_text().splitlines()
        assert pointer[0] == f"epoch_{kept[-1]}.pth"
        assert sorted(line.split()[2] for line in pointer[1:]) == names("epoch", kept)


def test_by_iterations(make_runner):
    hook = CheckpointHook(interval=5, by_epoch=False)
    runner = make_runner({"checkpoint": hook}, max_iters=12, val_size=0)
    runner.run("train")
    assert files(runner.work_dir) == names("iter", [5, 10, 12])
    checkpoint = load_checkpoint(runner.work_dir / "iter_5.pth")
    assert checkpoint["meta"]["iter"] == checkpoint["loop"]["iter"] == 5


def test_the_best_is_kept_alone_and_a_tie_or_nan_changes_nothing(make_runner):
    runner = train(
        make_runner,
        accuracy=[0.5, 0.9, 0.9, math.nan, 0.7],
        epochs=5,
        save_best="auto",
        interval=-1,
        save_last=False,
    )
    assert files(runner.work_dir) == ["best_accuracy_epoch_2.pth"]
    assert runner.message_hub.get_info("best_ckpt") == "best_accuracy_epoch_2.pth"
    assert runner.message_hub.get_info("best_score") == pytest.approx(0.9)


def test_several_metrics_each_have_their_best(make_runner):
    runner = train(
        make_runner,
        accuracy=[0.9, 0.5],
        epochs=2,
        save_best=["accuracy", "loss"],
        rule=["less", "less"],
        interval=-1,
        save_last=False,
    )
    assert files(runner.work_dir) == ["best_accuracy_epoch_2.pth", "best_loss_epoch_2.pth"]


def test_a_best_checkpoint_resumes_too(make_runner):
    runner = train(make_runner, accuracy=[0.5, 0.9], epochs=2, save_best="accuracy", interval=-1)
    assert (runner.work_dir / "last_checkpoint").read_text().startswith("epoch_2.pth\n")
    checkpoint = load_checkpoint(runner.work_dir / "best_accuracy_epoch_2.pth")
    assert checkpoint["loop"]["epoch"] == 2
    assert checkpoint["loop"]["phase"] == "train"
    assert checkpoint["optimizer"]["optimizers"]["default"]["state"]


def test_without_the_optimizer_a_checkpoint_is_small_and_says_that_it_cannot_resume(make_runner):
    runner = train(make_runner, epochs=1, save_optimizer=False, save_param_scheduler=False)
    path = runner.work_dir / "epoch_1.pth"
    assert {"optimizer", "param_schedulers"}.isdisjoint(load_checkpoint(path))
    with pytest.raises(ConfigError, match="load_from"):
        make_runner(resume=str(path), max_epochs=2).run("train")


def test_out_dir_puts_them_elsewhere_and_refuses_a_folder_of_another_run(make_runner, tmp_path):
    runner = train(make_runner, epochs=1, out_dir=str(tmp_path / "elsewhere"))
    assert files(runner.work_dir) == []
    assert files(tmp_path / "elsewhere" / "run") == ["epoch_1.pth"]
    with pytest.raises(ConfigError, match="out_dir"):
        train(make_runner, epochs=1, out_dir=str(tmp_path / "elsewhere"))


def test_published_files_hold_the_keys_and_are_named_by_their_checksum(make_runner):
    runner = train(
        make_runner,
        accuracy=[0.5],
        epochs=1,
        published_keys=["meta", "state_dict"],
        save_best="accuracy",
    )
    published = [n for n in files(runner.work_dir) if "-" in n]
    assert len(published) == 2
    for name in published:
        path = runner.work_dir / name
        assert path.stem.endswith("-" + sha256_of(path)[:8])
        assert set(load_checkpoint(path)) == {"meta", "state_dict"}
        weights = load_file(path.with_suffix(".safetensors"))
        assert torch.equal(weights["outer.weight"], runner.model.outer.weight)


def test_what_cannot_be_published_is_one_message(make_runner, monkeypatch):
    def full(path, keys):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("hookexp.hooks.checkpoint.publish", full)
    with pytest.raises(ConfigError) as caught:
        train(make_runner, epochs=1, published_keys="state_dict")
    assert str(caught.value) == (
        "hooks.checkpoint.published_keys: epoch_1.pth could not be published (no space left on "
        "device); all that was trained is saved: mend that, and resume=auto publishes it"
    )


@pytest.mark.parametrize("is_tampered", [False, True])
def test_what_another_run_has_kept_is_not_published(make_runner, tmp_path, caplog, is_tampered):
    arguments = {"published_keys": "state_dict", "save_best": "accuracy"}
    first = train(make_runner, accuracy=[0.9, 0.1], epochs=2, save_best="accuracy")
    start = first.work_dir / "epoch_2.pth"
    if is_tampered:
        checkpoint = load_checkpoint(start)
        best = checkpoint["hooks"]["checkpoint"]["best"]["accuracy"]
        best["file"] = f"../{first.work_dir.name}/{best['file']}"
        start = first.work_dir / "tampered.pth"
        torch.save(checkpoint, start)
    before = files(first.work_dir)
    second = make_runner(
        {"checkpoint": CheckpointHook(**arguments)},
        task=TinyTask(scripted_accuracy=[0.5, 0.5]),
        work_dir=tmp_path / "second",
        train_size=8,
        max_epochs=3,
        resume=str(start),
    )
    assert second.run("train").status == "finished"
    assert files(first.work_dir) == before
    published = [name for name in files(second.work_dir) if "-" in name]
    assert len(published) == 1 and published[0].startswith("epoch_3-")
    assert "best_accuracy_epoch_1.pth is none of this run's files, and is not published" in (
        caplog.text
    )


def test_publishing_a_best_that_never_came_is_skipped_with_a_warning(make_runner, caplog):
    runner = train(make_runner, epochs=1, published_keys="state_dict", save_best="accuracy")
    assert "never came" in caplog.text
    assert len(files(runner.work_dir)) == 2


def test_an_early_stop_keeps_the_last_state(make_runner):
    class Stop(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 4:
                runner.state.stop("enough")

    hook = CheckpointHook(interval=5)
    runner = make_runner({"checkpoint": hook, "stop": Stop()}, max_epochs=5)
    runner.run("train")
    assert files(runner.work_dir) == ["iter_5.pth"]
    assert load_checkpoint(runner.work_dir / "iter_5.pth")["loop"]["batch_in_epoch"] == 2


def test_the_last_iteration_is_saved_also_of_data_without_a_length(make_runner):
    class NoLength:
        def __iter__(self):
            return iter(list(MemoryLoader(TinyData(), BatchSampler(24, 8, seed=0, shuffle=False))))

    for resume, epochs, expected in (
        (None, 2, [4, 6]),
        ("auto", 2, [4, 6]),
        ("auto", 3, [4, 6, 8, 9]),
    ):
        hooks = {"checkpoint": CheckpointHook(by_epoch=False, interval=4)}
        runner = make_runner(hooks, val_size=0, max_epochs=epochs, resume=resume)
        runner._parts.train_loader = runner.train_loop.dataloader = BatchStream(NoLength())
        assert runner.max_iters is None
        runner.run("train")
        assert files(runner.work_dir) == names("iter", expected)


@pytest.mark.parametrize(
    ("arguments", "in_epoch", "name"),
    [
        ({}, False, "state_1.pth"),
        ({}, True, "iter_4.pth"),
        ({"by_epoch": False}, False, "state_3.pth"),
        ({"by_epoch": False}, True, "state_4.pth"),
    ],
)
def test_what_a_stop_saves_has_its_name_of_the_template(make_runner, arguments, in_epoch, name):
    class Stop(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if in_epoch and runner.iter == 3:
                runner.state.stop("enough")

        def after_train_epoch(self, runner):
            if not in_epoch:
                runner.state.stop("enough")

    hook = CheckpointHook(interval=-1, filename_tmpl="state_{}.pth", **arguments)
    runner = make_runner({"checkpoint": hook, "stop": Stop()}, val_size=0, max_epochs=5)
    runner.run("train")
    assert files(runner.work_dir) == [name]


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        ({}, [3, 6, 9, 11]),
        ({"interval": 2}, [6, 11]),
        ({"interval": 2, "save_last": False}, [6]),
        ({"save_begin": 3}, [9, 11]),
        ({"interval": -1}, [11]),
        ({"max_keep_ckpts": 1}, [11]),
    ],
)
def test_in_a_run_by_iterations_passes_over_the_data_count(make_runner, arguments, kept):
    hook = CheckpointHook(**arguments)
    runner = make_runner({"checkpoint": hook}, val_size=0, max_iters=11)
    runner.run("train")
    assert files(runner.work_dir) == names("iter", kept)


@pytest.mark.parametrize(("max_iters", "every"), [(300, 3), (301, 6), (900, 9), (2000, 21)])
def test_where_there_are_many_passes_several_count_as_one(make_runner, max_iters, every):
    saved = []

    class Note(Hook):
        def before_save_checkpoint(self, runner, checkpoint):
            saved.append(runner.iter)

    hooks = {"checkpoint": CheckpointHook(max_keep_ckpts=1, save_last=False), "note": Note()}
    make_runner(hooks, val_size=0, max_iters=max_iters).run("train")
    assert saved == [*range(every, max_iters + 1, every)]


@pytest.mark.parametrize(
    ("arguments", "is_told"),
    [({}, True), ({"by_epoch": False}, False), ({"every_n_minutes": 9}, False)],
)
def test_where_nobody_knows_what_a_pass_is_it_is_told(make_runner, caplog, arguments, is_told):
    class NoLength:
        def __iter__(self):
            return iter(list(MemoryLoader(TinyData(), BatchSampler(24, 8, seed=0, shuffle=False))))

    runner = make_runner({"checkpoint": CheckpointHook(**arguments)}, val_size=0, max_iters=4)
    batches = BatchStream(NoLength(), endless=True)
    runner._parts.train_loader = runner.train_loop.dataloader = batches
    runner.run("train")
    assert ("hooks.checkpoint.by_epoch=false" in caplog.text) == is_told
    assert len(files(runner.work_dir)) == (4 if "by_epoch" in arguments else 1)


def test_a_stop_right_after_a_save_saves_nothing_twice(make_runner):
    class Stop(Hook):
        def after_val(self, runner):
            if runner.epoch == 2:
                runner.state.stop("enough")

    recorder = Recorder()
    hooks = {"checkpoint": CheckpointHook(), "stop": Stop(), "recorder": recorder}
    make_runner(hooks, max_epochs=5).run("train")
    assert recorder.points.count("before_save_checkpoint") == 2


def test_what_is_kept_and_the_best_go_on_after_a_resume(make_runner):
    def run(accuracy, epochs, **more):
        hook = CheckpointHook(max_keep_ckpts=2, save_best="accuracy")
        runner = make_runner(
            {"checkpoint": hook}, task=TinyTask(accuracy), max_epochs=epochs, **more
        )
        runner.run("train")
        return runner

    run([0.9, 0.1], 2)
    runner = run([0.1, 0.5, 0.5], 4, resume="auto")
    kept = ["best_accuracy_epoch_1.pth", "epoch_3.pth", "epoch_4.pth"]
    assert files(runner.work_dir) == kept


def test_saves_by_the_clock(make_runner, monkeypatch):
    now = [0.0]

    class Minute(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            now[0] += 60.0

    monkeypatch.setattr("hookexp.hooks.checkpoint.time.monotonic", lambda: now[0])
    hook = CheckpointHook(interval=-1, save_last=False, every_n_minutes=2)
    runner = make_runner({"checkpoint": hook, "minute": Minute()}, max_epochs=2, val_size=0)
    runner.run("train")
    assert files(runner.work_dir) == names("iter", [2, 4, 6])


def test_it_costs_nothing_where_nothing_is_ever_due():
    point = "after_train_iter"
    assert point not in CheckpointHook().get_triggered_stages()
    for options in ({"by_epoch": False}, {"every_n_minutes": 1}):
        assert point in CheckpointHook(**options).get_triggered_stages()

    class Own(CheckpointHook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            pass

    hooks = HookList()
    hooks.register(CheckpointHook(), "checkpoint")
    hooks.register(Own(), "own")
    assert [point in entry.stages for entry in hooks.entries] == [False, True]


def test_published_weights_have_their_name_once_they_are_whole(make_runner, monkeypatch):
    """A disk that fills up, or a kill, leaves no half of a safetensors file."""

    def fail(descriptor):
        written = os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}"))
        if "safetensors" in written:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(ConfigError, match=r"epoch_1\.pth could not be published \(no space left"):
        train(make_runner, epochs=1, published_keys="state_dict")
    assert not list((make_runner().work_dir).glob("*.safetensors"))


def raise_generator_exit(*args):
    """Nothing handles it, so that the files are those that a signal leaves which kills."""
    raise GeneratorExit


def test_a_run_that_is_killed_while_it_ends_publishes_after_a_resume(
    make_runner, tmp_path, monkeypatch
):
    def run():
        hooks = {"checkpoint": CheckpointHook(published_keys="state_dict")}
        make_runner(hooks, max_epochs=1, resume="auto", work_dir=tmp_path).run("train")

    with monkeypatch.context() as patched, pytest.raises(GeneratorExit):
        patched.setattr("hookexp.hooks.checkpoint.publish", raise_generator_exit)
        run()
    assert (tmp_path / "summary.json").exists() and not [*tmp_path.glob("epoch_1-*")]
    assert Summary.of_run_that_is_over(tmp_path, 1, None) is None
    run()
    assert len([*tmp_path.glob("epoch_1-*.safetensors")]) == 1
    assert Summary.of_run_that_is_over(tmp_path, 1, None) is not None


def test_a_failed_run_publishes_nothing(make_runner):
    class Bomb(Hook):
        def before_train_epoch(self, runner):
            if runner.epoch == 1:
                raise RuntimeError("boom")

    hook = CheckpointHook(published_keys="state_dict")
    runner = make_runner({"checkpoint": hook, "bomb": Bomb()}, max_epochs=2)
    with pytest.raises(RuntimeError, match="boom"):
        runner.run("train")
    assert files(runner.work_dir) == ["epoch_1.pth"]


def test_an_error_saves_nothing_half_done_unless_it_is_asked_for(make_runner):
    class Bomb(Hook):
        priority = "LOWEST"

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if runner.iter == 1:
                raise RuntimeError("boom")

    for arguments, expected in [
        ({}, ["iter_1.pth"]),
        ({"save_on_exception": True}, ["exception_iter_1.pth", "iter_1.pth"]),
    ]:
        hook = CheckpointHook(by_epoch=False, **arguments)
        runner = make_runner({"checkpoint": hook, "bomb": Bomb()}, max_epochs=2)
        with pytest.raises(RuntimeError, match="boom"):
            runner.run("train")
        assert files(runner.work_dir) == expected
        assert runner.writer.store.newest().name == "iter_1.pth"


def test_a_missing_metric_lists_those_there_are(make_runner):
    with pytest.raises(ValueError, match="there are: accuracy, loss"):
        train(make_runner, accuracy=[0.5], epochs=1, save_best="top-1")


def test_a_validation_only_run_ignores_it(make_runner):
    hook = CheckpointHook(save_best="accuracy")
    runner = make_runner({"checkpoint": hook})
    runner.run("val")
    assert files(runner.work_dir) == []


def test_pruning_never_touches_the_folder_resumed_from(make_runner, tmp_path):
    first = make_runner(
        {"checkpoint": CheckpointHook(max_keep_ckpts=1)}, work_dir=tmp_path / "a", max_epochs=1
    )
    first.run("train")
    second = make_runner(
        {"checkpoint": CheckpointHook(max_keep_ckpts=1)},
        work_dir=tmp_path / "b",
        max_epochs=3,
        resume=str(tmp_path / "a"),
    )
    second.run("train")
    assert files(tmp_path / "a") == ["epoch_1.pth"]
    assert files(tmp_path / "b") == ["epoch_3.pth"]


@pytest.mark.parametrize(
    ("save_best", "message"),
    [
        ("f1", "save_best=f1: there is no such metric; there are: accuracy, miou, perplexity"),
        ("perplexity", "save_best=perplexity: .*set rule"),
    ],
)
def test_a_wrong_metric_is_told_before_the_run(save_best, message):
    names = ("accuracy", "miou", "perplexity")
    with pytest.raises(ValueError, match=message):
        CheckpointHook(save_best=save_best).check_metrics(names)
    CheckpointHook(save_best="perplexity", rule="less").check_metrics(names)
    CheckpointHook(save_best="auto").check_metrics(names)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"interval": 0}, "interval=0: use -1 or 1"),
        ({"every_n_minutes": "ten"}, "every_n_minutes=ten: use null or a number above 0"),
        ({"interval": -2}, "interval=-2"),
        ({"max_keep_ckpts": 0}, "max_keep_ckpts=0"),
        ({"filename_tmpl": "../../x_{}.pth"}, "filename_tmpl=../../x_{}.pth: use a plain"),
        ({"filename_tmpl": "x.pth"}, "one {} for the number"),
        ({"save_best": ["accuracy", "loss"], "rule": ["greater"] * 3}, "one for each metric"),
        ({"save_best": "accuracy", "rule": "bigger"}, "rule=bigger: use greater or less"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CheckpointHook(**arguments)


@pytest.mark.parametrize("name", ["../x.pth", "/tmp/x.pth", "a/x.pth", "", "..", Path("x.pth")])
def test_a_checkpoint_that_a_hook_asks_for_has_a_plain_name(make_runner, name):
    runner = make_runner({})
    with pytest.raises(ValueError, match=r"a checkpoint cannot be called .*use a plain file name"):
        runner.save_checkpoint(name)
    assert runner.state.save_requests == []

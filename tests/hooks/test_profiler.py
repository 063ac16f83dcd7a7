"""Traces of real runs, read back as JSON."""

from __future__ import annotations

import gzip
import inspect
import json

import pytest
import torch
from fakes import Recorder
from omegaconf import OmegaConf

from hookexp.compose.conf_dir import conf_dir
from hookexp.compose.instantiate import instantiate
from hookexp.errors import ConfigError
from hookexp.hook import Hook, Priority
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.profiler import ProfilerHook

ROUNDING = 1.0
"""µs: begin and length of a range are rounded apart from each other."""


def read(path):
    opened = gzip.open if path.suffix == ".gz" else open
    with opened(path, "rt") as file:
        return json.load(file)["traceEvents"]


def ranges(path):
    """Name, begin and end (in µs) of the ranges that the trace has besides torch's operations."""
    return [
        (event["name"], event["ts"], event["ts"] + event["dur"])
        for event in read(path)
        if event.get("cat") == "user_annotation"
    ]


def names(path):
    return [name for name, _, _ in ranges(path)]


def num(path, name):
    return names(path).count(name)


def profiler(**arguments):
    return ProfilerHook(**{"on_trace_ready": None, "json_trace_path": "trace.json", **arguments})


def run(make_runner, hook, mode="train", more=None, **settings):
    runner = make_runner({**(more or {}), "profiler": hook}, **settings)
    runner.run(mode)
    return runner.work_dir / "trace.json"


def test_mount_points_and_hooks_are_named_ranges_one_inside_the_other(make_runner):
    more = {"checkpoint": CheckpointHook(async_save=False), "probe": Recorder()}
    path = run(make_runner, profiler(profile_times=2), more=more, max_epochs=3)
    found = ranges(path)
    of_name = {}
    for name, begin, end in found:
        if name == "after_train_epoch/profiler":
            continue  # The profiler ends in the middle of this one.
        of_name.setdefault(name, []).append((begin, end))
    assert {
        "before_train_iter/probe",
        "after_train_iter/optimizer",
        "after_optim_step/probe",
        "after_val_epoch/probe",
        "before_train_epoch/sampler_seed",
        "before_save_checkpoint/probe",
    } <= set(of_name)
    for name, inner in of_name.items():
        point, _, hook = name.partition("/")
        if hook:
            for begin, end in inner:
                assert any(b <= begin and end <= e + ROUNDING for b, e in of_name[point]), name
    assert len(of_name["after_train_iter"]) == len(of_name["after_train_iter/optimizer"]) == 6
    step, outer = of_name["after_optim_step"][0], of_name["after_train_iter/optimizer"][0]
    assert outer[0] <= step[0] and step[1] <= outer[1]
    operations = {event["name"] for event in read(path)}
    assert {"aten::linear", "aten::mse_loss"} <= operations


@pytest.mark.parametrize(
    ("arguments", "iterations", "validations"),
    [
        ({}, 3, 0),
        ({"profile_times": 2}, 6, 1),
        ({"profile_times": 99}, 9, 3),
        ({"by_epoch": False}, 1, 0),
        ({"by_epoch": False, "profile_times": 5}, 5, 1),
    ],
)
def test_so_many_epochs_or_iterations_are_profiled(make_runner, arguments, iterations, validations):
    path = run(make_runner, profiler(**arguments), more={"probe": Recorder()}, max_epochs=3)
    assert num(path, "before_train_iter") == iterations
    assert num(path, "before_val") == validations


def test_it_starts_with_training_not_with_loading(make_runner, tmp_path):
    class Loading(Hook):
        def before_run(self, runner):
            torch.hypot(torch.ones(2), torch.ones(2))

    make_runner({"checkpoint": CheckpointHook()}, max_epochs=1).run("train")
    more = {"loading": Loading(), "probe": Recorder(), "checkpoint": CheckpointHook()}
    path = run(make_runner, profiler(), more=more, max_epochs=2, resume=str(tmp_path / "run"))
    assert not {"before_run", "after_load_checkpoint", "before_train"} & set(names(path))
    assert "aten::hypot" not in {event["name"] for event in read(path)}
    assert num(path, "before_train_iter") == 3, "a resumed run is profiled too"


@pytest.mark.parametrize("mode", ["val", "test"])
def test_an_evaluation_alone_is_profiled(make_runner, mode):
    more = {"probe": Recorder()}
    path = run(make_runner, profiler(), mode, more=more, batch_size=3)
    assert num(path, f"before_{mode}_iter/probe") == 3
    hook = profiler(by_epoch=False, profile_times=2)
    path = run(make_runner, hook, mode, more={"probe": Recorder()}, batch_size=3)
    assert num(path, f"before_{mode}_iter/probe") == 2


def test_when_it_has_ended_a_call_is_what_it_was(make_runner):
    def calls(hooks):
        kinds = {}
        for point in ("before_train_iter", "after_train_iter", "after_val"):
            kinds[point] = getattr(hooks, point).__qualname__
        return kinds

    class Look(Hook):
        priority = Priority.LOWEST

        def __init__(self):
            self.seen = []

        def before_train_epoch(self, runner):
            self.seen.append(calls(runner.hooks))

    look = Look()
    runner = make_runner({"profiler": profiler(), "look": look}, max_epochs=2)
    unwrapped = calls(runner.hooks)
    runner.run("train")
    assert look.seen[0] != unwrapped
    assert look.seen[1] == unwrapped == calls(runner.hooks)


def test_an_error_ends_it_and_leaves_the_trace(make_runner, tmp_path):
    class Bomb(Hook):
        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if batch_idx == 1:
                raise RuntimeError("boom")

    runner = make_runner({"bomb": Bomb(), "profiler": profiler()}, max_epochs=2)
    with pytest.raises(RuntimeError, match="boom") as caught:
        runner.run("train")
    assert "in hook 'bomb' (Bomb) at after_train_iter, epoch 0, iter 1" in caught.value.__notes__
    assert num(tmp_path / "run" / "trace.json", "after_train_iter/bomb") == 2
    assert not torch.autograd.profiler._is_profiler_enabled


def test_a_schedule_chooses_the_iterations(make_runner, tmp_path):
    schedule = {"wait": 2, "warmup": 1, "active": 2, "repeat": 1}
    path = run(
        make_runner,
        profiler(schedule=schedule),
        more={"probe": Recorder()},
        max_epochs=2,
        train_size=64,
    )
    assert num(path, "before_train_iter") == 2
    steps = sorted(name for name in names(path) if name.startswith("ProfilerStep"))
    assert steps == ["ProfilerStep#3", "ProfilerStep#4"]


def test_a_schedule_longer_than_the_run_is_told(make_runner, caplog):
    schedule = {"wait": 50, "warmup": 1, "active": 2}
    path = run(make_runner, profiler(schedule=schedule), max_epochs=1)
    assert not path.exists()
    assert "ended before hooks.profiler.schedule={'wait': 50" in caplog.text


def test_a_table_of_the_costliest_operations_is_logged(make_runner, caplog):
    with caplog.at_level("INFO"):
        make_runner({"profiler": ProfilerHook()}, max_epochs=1).run("train")
    assert "after_train_iter/optimizer" in caplog.text
    assert "Self CPU time total" in caplog.text
    caplog.clear()
    options = {"type": "log_trace", "sort_by": "count", "row_limit": 2}
    with caplog.at_level("INFO"):
        make_runner({"profiler": ProfilerHook(on_trace_ready=options)}, max_epochs=1).run("train")
    table = next(r.getMessage() for r in caplog.records if "CPU total" in r.getMessage())
    rows = [line for line in table.splitlines() if line and line[0] not in "-S"]
    counts = [int(row.split()[-1]) for row in rows if row.split()[-1].isdigit()]
    assert len(counts) == 2 and counts[0] >= counts[1] > 3


# With more than one cycle torch says that each has its own trace, which is what is wanted here.
@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events at the end of each cycle")
def test_tensorboards_trace_goes_into_the_runs_folder(make_runner, tmp_path):
    run(make_runner, profiler(on_trace_ready="tb_trace"), max_epochs=1)
    (trace,) = (tmp_path / "run" / "tf_tracing_logs").iterdir()
    assert trace.name.endswith(".1.pt.trace.json")
    assert trace.read_bytes() == (tmp_path / "run" / "trace.json").read_bytes()
    options = {"type": "tb_trace", "dir_name": "traces", "worker_name": "me"}
    schedule = {"wait": 0, "warmup": 1, "active": 1}
    hook = profiler(on_trace_ready=options, schedule=schedule, json_trace_path="deep/trace.json.gz")
    run(make_runner, hook, max_epochs=1, train_size=32)
    there = sorted((tmp_path / "run" / "traces").iterdir())
    assert [path.name for path in there] == ["me.1.pt.trace.json", "me.2.pt.trace.json"]
    of_json = tmp_path / "run" / "deep"
    assert sorted(p.name for p in of_json.iterdir()) == ["trace.2.json.gz", "trace.json.gz"]
    assert read(of_json / "trace.json.gz") == read(there[0])
    assert read(of_json / "trace.2.json.gz") == read(there[1])


def test_a_function_that_fails_does_not_crash_the_process(make_runner):
    def fail(profiler):
        raise RuntimeError("no room")

    schedule = {"wait": 0, "warmup": 1, "active": 1}
    hook = ProfilerHook(on_trace_ready=fail, schedule=schedule)
    with pytest.raises(RuntimeError, match="no room"):
        make_runner({"profiler": hook}, max_epochs=1).run("train")
    assert not torch.autograd.profiler._is_profiler_enabled


def test_a_function_gets_the_profiler(make_runner):
    got = []
    hook = ProfilerHook(on_trace_ready=lambda p: got.append(len(p.key_averages())))
    make_runner({"profiler": hook}, max_epochs=1).run("train")
    assert got[0] > 10


@pytest.mark.parametrize(
    ("parameter", "key"),
    [("record_shapes", "Input Dims"), ("with_stack", "Python id"), ("profile_memory", "Bytes")],
)
def test_what_is_recorded_besides(make_runner, parameter, key):
    def has_key(value):
        path = run(make_runner, profiler(**{parameter: value}), max_epochs=1)
        return any(key in event.get("args", {}) for event in read(path))

    assert has_key(True)
    assert not has_key(False)


def test_flops_are_estimated(make_runner):
    flops = []
    for value in (True, False):
        hook = ProfilerHook(
            with_flops=value,
            on_trace_ready=lambda p: flops.append(sum(e.flops for e in p.key_averages())),
        )
        make_runner({"profiler": hook}, max_epochs=1).run("train")
    # Forward: 3 batches of 8 rows through 4x8 and 8x1; torch counts a multiplication as one.
    assert flops[0] > 3 * 8 * (4 * 8 + 8)
    assert flops[1] == 0


def test_a_hook_profiles_only_once(make_runner):
    runner = make_runner({"probe": Recorder(), "profiler": profiler()}, max_epochs=1)
    runner.run("train")
    runner.run("test")
    assert num(runner.work_dir / "trace.json", "before_train_iter") == 3
    assert num(runner.work_dir / "trace.json", "before_test_iter") == 0


def test_only_the_first_rank_is_profiled(make_runner):
    class Second(type(make_runner({}))):
        rank = 1

    runner = make_runner({"profiler": profiler()}, max_epochs=1)
    runner.__class__ = Second
    runner.run("train")
    assert not (runner.work_dir / "trace.json").exists()


def test_a_gpu_is_recorded_where_there_is_one(make_runner):
    hook = ProfilerHook()
    for kind, chosen in (("cpu", ["CPU"]), ("cuda", ["CPU", "CUDA"])):
        assert [a.name for a in hook._chosen_activities(torch.device(kind))] == chosen


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"activity_with_cuda": True}, r"hooks\.profiler\.activity_with_cuda=true: there is no"),
        ({"activity_with_cpu": False}, r"hooks\.profiler\.activity_with_cpu=false: the run is on"),
    ],
)
def test_what_the_machine_does_not_have_is_an_error_before_training(
    make_runner, arguments, message
):
    with pytest.raises(ConfigError, match=message):
        make_runner({"profiler": ProfilerHook(**arguments)}, max_epochs=1).run("train")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"profile_times": 0}, "profile_times=0: use a whole number"),
        ({"activity_with_cuda": "yes"}, "activity_with_cuda=yes: use true, false or auto"),
        ({"schedule": {"wait": 1}}, "schedule={'wait': 1}: .* it takes wait, warmup, active"),
        ({"schedule": {"wait": 1, "warmup": 0, "active": 0}}, "active has to be above 0"),
        ({"json_trace_path": "../x.json"}, "json_trace_path=../x.json: leads out of the run's"),
        (
            {"on_trace_ready": {"type": "tb_trace", "dir_name": "a/../.."}},
            "on_trace_ready.dir_name=a/../..: leads out of the run's folder",
        ),
        ({"on_trace_ready": "log"}, "on_trace_ready=log: use log_trace, tb_trace, a mapping"),
        (
            {"on_trace_ready": {"type": "tb_trace", "sort_by": "x"}},
            "on_trace_ready.sort_by: tb_trace has no such option; it has: dir_name, worker_name",
        ),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ProfilerHook(**arguments)


def test_the_config_shows_every_parameter_with_its_default():
    config = OmegaConf.load(conf_dir() / "hooks" / "profiler" / "default.yaml")
    assert config.pop("priority") is None
    made, by_default = instantiate(config, "hooks.profiler"), ProfilerHook()
    for name, value in vars(by_default).items():
        assert name.startswith("_") or getattr(made, name) == value
    assert set(config) == {"_target_", *inspect.signature(ProfilerHook).parameters}
    assert ProfilerHook.priority == Priority.VERY_LOW


def test_a_run_by_iterations_is_told_that_all_of_it_is_profiled(make_runner, caplog):
    for by_epoch in (False, True):
        assert "by_epoch=false" not in caplog.text
        hook = ProfilerHook(by_epoch=by_epoch, on_trace_ready=None)
        make_runner({"profiler": hook}, max_iters=4, val_size=0).run("train")
    assert "set hooks.profiler.by_epoch=false hooks.profiler.profile_times=20" in caplog.text

"""`ProfilerHook`: where the time of a run goes, with the hooks under their own names."""

from __future__ import annotations

import gzip
import inspect
import socket
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.profiler import ProfilerActivity, record_function

from hookexp.errors import ConfigError
from hookexp.hook import Batch, Hook, Mode, Priority
from hookexp.listeners import ALL_HOOKS, Listener
from hookexp.numeric import require_whole

if TYPE_CHECKING:
    from hookexp.runner import Runner

TRACE_OPTIONS: dict[str, tuple[str, ...]] = {
    "log_trace": ("sort_by", "row_limit"),
    "tb_trace": ("dir_name", "worker_name"),
}
DEFAULT_ROW_LIMIT = 20


class ProfilerHook(Hook):
    """Runs torch's profiler over the first epochs or iterations of a run.

    In the trace each mount point is a range (`after_train_iter`), and each hook a range inside it
    (`after_train_iter/optimizer`); while nothing is profiled they cost nothing. The profiler
    starts with training, not with loading; in mode=val and mode=test it takes the evaluation. A
    validation in the profiled time is recorded, but its iterations do not count. Only rank 0 is
    profiled, and a hook profiles only once.

        python -m hookexp hooks=+profiler hooks.profiler.on_trace_ready=tb_trace
        python -m hookexp hooks=+profiler hooks.profiler.by_epoch=false
            hooks.profiler.profile_times=20 hooks.profiler.json_trace_path=trace.json

    A trace is looked at in https://ui.perfetto.dev or TensorBoard. It is kept in memory until it is
    written, so choose few iterations.

    Args:
        by_epoch: whether `profile_times` counts epochs, else iterations.
        profile_times: how many are profiled; fewer if the run ends before.
        activity_with_cpu: record what the CPU does.
        activity_with_cuda: record what the GPU does; `auto`: if the run is on one.
        schedule: arguments of `torch.profiler.schedule` (wait, warmup, active, repeat,
            skip_first), in iterations; null records all.
        on_trace_ready: `log_trace` logs a table of the costliest operations, `tb_trace` writes
            into `tf_tracing_logs` of the run's folder. As mappings they take options:
            `{type: log_trace, sort_by, row_limit}`, `{type: tb_trace, dir_name, worker_name}`. A
            function is called with the profiler; null does nothing.
        record_shapes: record the shapes of the operations' inputs.
        profile_memory: record memory that is taken and given back.
        with_stack: record file and line of each operation.
        with_flops: estimate the FLOPs of convolutions and matrix products.
        json_trace_path: also write the trace to this file, compressed if it ends in .gz; a
            relative path is inside the run's folder. Where a schedule has several cycles, those
            after the first are trace.2.json, trace.3.json and so on.

    Raises:
        ValueError: for values that cannot be.
    """

    priority = Priority.VERY_LOW

    def __init__(
        self,
        by_epoch: bool = True,
        profile_times: int = 1,
        activity_with_cpu: bool = True,
        activity_with_cuda: bool | str = "auto",
        schedule: Mapping[str, int] | None = None,
        on_trace_ready: str | Mapping[str, Any] | Callable[[Any], None] | None = "log_trace",
        record_shapes: bool = False,
        profile_memory: bool = False,
        with_stack: bool = False,
        with_flops: bool = False,
        json_trace_path: str | None = None,
    ) -> None:
        require_whole("profile_times", profile_times)
        if activity_with_cuda not in (True, False, "auto"):
            raise ValueError(f"activity_with_cuda={activity_with_cuda}: use true, false or auto")
        self.by_epoch = by_epoch
        self.profile_times = profile_times
        self.activity_with_cpu = activity_with_cpu
        self.activity_with_cuda = activity_with_cuda
        self.schedule = None if schedule is None else _checked_schedule(schedule)
        self.on_trace_ready = _checked_options(on_trace_ready)
        self.json_trace_path = _inside("json_trace_path", json_trace_path)
        self.record_shapes = record_shapes
        self.profile_memory = profile_memory
        self.with_stack = with_stack
        self.with_flops = with_flops
        self._activities: list[ProfilerActivity] = []
        self._profiler: torch.profiler.profile | None = None
        self._remove_ranges: Callable[[], None] = lambda: None
        self._num_finished = 0
        self._num_traces = 0
        self._has_begun = False

    def before_run(self, runner: Runner) -> None:
        self._activities = self._chosen_activities(runner.device)

    def before_train(self, runner: Runner) -> None:
        if self.by_epoch and self.schedule is None and self.is_one_long_epoch(runner):
            runner.logger.warning(
                "hooks.profiler.by_epoch=true: a run by iterations is one epoch, so all of it is "
                "profiled and kept in memory; set hooks.profiler.by_epoch=false "
                "hooks.profiler.profile_times=20"
            )
        self._begin(runner)

    def before_val(self, runner: Runner) -> None:
        self._begin(runner)

    def before_test(self, runner: Runner) -> None:
        self._begin(runner)

    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
        mode: Mode = "train",
    ) -> None:
        if self._profiler is not None and mode == runner.mode:
            self._step()
            if not self.by_epoch:
                self._count_one()

    def _after_epoch(self, runner: Runner, mode: Mode = "train") -> None:
        if self._profiler is not None and mode == runner.mode and self.by_epoch:
            self._count_one()

    def after_run(self, runner: Runner) -> None:
        self._end()
        if self._has_begun and self._num_traces == 0:
            runner.logger.warning(
                "hook 'profiler': the profiled time ended before hooks.profiler.schedule=%s "
                "recorded anything",
                self.schedule,
            )

    def _begin(self, runner: Runner) -> None:
        if self._has_begun or runner.rank != 0:
            return
        self._has_begun = True
        self._profiler = torch.profiler.profile(
            activities=self._activities,
            schedule=None if self.schedule is None else torch.profiler.schedule(**self.schedule),
            on_trace_ready=lambda profiler: self._hand_over(profiler, runner),
            record_shapes=self.record_shapes,
            profile_memory=self.profile_memory,
            with_stack=self.with_stack,
            with_flops=self.with_flops,
        )
        self._profiler.start()
        self._remove_ranges = runner.hooks.wrap_listeners(_in_a_range)

    def _step(self) -> None:
        # Torch crashes in the `stop` of a profiler whose `step` has raised (as `on_trace_ready`
        # may), so it counts as ended until it has not.
        profiler, self._profiler = self._profiler, None
        assert profiler is not None
        profiler.step()
        self._profiler = profiler

    def _count_one(self) -> None:
        self._num_finished += 1
        if self._num_finished == self.profile_times:
            self._end()

    def _end(self) -> None:
        self._remove_ranges()
        if self._profiler is not None:
            profiler, self._profiler = self._profiler, None
            profiler.stop()

    def _hand_over(self, profiler: torch.profiler.profile, runner: Runner) -> None:
        """Do with a recorded trace what was asked for."""
        self._num_traces += 1
        options = self.on_trace_ready
        if callable(options):
            options(profiler)
        elif options["type"] == "log_trace":
            runner.logger.info("%s", _table(profiler, options))
        paths = []
        if not callable(options) and options["type"] == "tb_trace":
            worker = options.get("worker_name") or socket.gethostname()
            folder = runner.work_dir / options.get("dir_name", "tf_tracing_logs")
            paths.append(folder / f"{worker}.{self._num_traces}.pt.trace.json")
        if self.json_trace_path is not None:
            paths.append(_numbered(runner.work_dir / self.json_trace_path, self._num_traces))
        _write_trace(profiler, paths)
        for path in paths:
            runner.logger.info("hook 'profiler': trace written to %s", path)

    def _chosen_activities(self, device: torch.device) -> list[ProfilerActivity]:
        if self.activity_with_cuda is True and not torch.cuda.is_available():
            raise ConfigError(
                "hooks.profiler.activity_with_cuda=true: there is no CUDA device; use auto or false"
            )
        with_cuda = self.activity_with_cuda
        if with_cuda == "auto":
            with_cuda = device.type == "cuda"
        chosen = [ProfilerActivity.CPU] if self.activity_with_cpu else []
        chosen += [ProfilerActivity.CUDA] if with_cuda else []
        if not chosen:
            raise ConfigError(
                f"hooks.profiler.activity_with_cpu=false: the run is on {device}, and "
                f"activity_with_cuda={self.activity_with_cuda} records nothing there"
            )
        return chosen


def _in_a_range(call: Listener, point: str, hook_name: str) -> Listener:
    """The call inside a range of the trace that says whose it is."""
    label = point if hook_name == ALL_HOOKS else f"{point}/{hook_name}"

    def call_in_a_range(runner: Runner, *args: Any, **kwargs: Any) -> None:
        with record_function(label):
            call(runner, *args, **kwargs)

    return call_in_a_range


def _table(profiler: torch.profiler.profile, options: Mapping[str, Any]) -> str:
    on_gpu = ProfilerActivity.CUDA in profiler.activities
    sort_by = options.get("sort_by") or f"self_{'cuda' if on_gpu else 'cpu'}_time_total"
    row_limit = options.get("row_limit", DEFAULT_ROW_LIMIT)
    return str(profiler.key_averages().table(sort_by=sort_by, row_limit=row_limit))


def _inside(option: str, path: str | None) -> str | None:
    """A path within the run's folder, or a place elsewhere that is named from the root on."""
    if path is not None and ".." in Path(path).parts:
        raise ValueError(
            f"{option}={path}: leads out of the run's folder; leave out the .., or give the whole "
            "path from / on"
        )
    return path


def _numbered(path: Path, number: int) -> Path:
    """The path itself for the first trace, `t.2.json.gz` in place of `t.json.gz` for the second."""
    if number == 1:
        return path
    suffix = "".join(path.suffixes[-2:] if path.suffix == ".gz" else path.suffixes[-1:])
    return path.with_name(f"{path.name.removesuffix(suffix)}.{number}{suffix}")


def _write_trace(profiler: torch.profiler.profile, paths: list[Path]) -> None:
    """Write the trace to each path; torch exports one only once, so the others are copies."""
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path == paths[0]:
            profiler.export_chrome_trace(str(path))
        elif path.suffix == ".gz":
            path.write_bytes(gzip.compress(paths[0].read_bytes()))
        else:
            path.write_bytes(paths[0].read_bytes())


def _checked_schedule(schedule: Mapping[str, int]) -> dict[str, int]:
    try:
        torch.profiler.schedule(**schedule)
    except (TypeError, AssertionError) as error:
        names = ", ".join(inspect.signature(torch.profiler.schedule).parameters)
        raise ValueError(
            f"schedule={dict(schedule)}: {error}; it takes {names}, whole numbers of iterations, "
            "of which active has to be above 0"
        ) from None
    return dict(schedule)


def _checked_options(given: Any) -> dict[str, Any] | Callable[[Any], None]:
    """What to do with a trace: a function, or a mapping with the key `type`."""
    if callable(given):
        return given  # type: ignore[no-any-return]
    options = dict(given) if isinstance(given, Mapping) else {"type": given}
    kind = options.get("type")
    if kind is None and len(options) == 1:
        return options
    if kind not in TRACE_OPTIONS:
        raise ValueError(
            f"on_trace_ready={given}: use {', '.join(TRACE_OPTIONS)}, a mapping with one of them "
            "as its type, a function or null"
        )
    for key in options:
        if key != "type" and key not in TRACE_OPTIONS[kind]:
            raise ValueError(
                f"on_trace_ready.{key}: {kind} has no such option; it has: "
                f"{', '.join(TRACE_OPTIONS[kind])}"
            )
    for key in ("dir_name", "worker_name"):
        _inside(f"on_trace_ready.{key}", options.get(key))
    return options

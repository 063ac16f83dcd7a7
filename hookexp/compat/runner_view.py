"""The runner as hooks written for MMEngine and MMCV know it.

They are handed a `RunnerView`, bound when they are registered, so that our own hooks and the loop
pay nothing for it and the runner does not grow a second set of names. `mmengine` is never
imported here.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hookexp.checkpoint.store import CheckpointStore
from hookexp.compat.config_view import ConfigView, FolderName
from hookexp.compat.hub_view import HubView, LogBufferView, LogProcessorView
from hookexp.compat.loop_view import EvaluatorView, LoopView
from hookexp.compat.optim_view import OptimWrapperView, SchedulerView, scheduler_views
from hookexp.compat.singletons import bind
from hookexp.compat.view import View
from hookexp.hook import MOUNT_POINTS
from hookexp.state import SaveRequest

if TYPE_CHECKING:
    from hookexp.hook import Mode
    from hookexp.runner import Runner

_VIEW = "_published_view"
_OF_A_BATCH = {point for point in MOUNT_POINTS if point.endswith("_iter")}


class RunnerView(View):
    """A runner under the names of MMEngine's `Runner`, and of MMCV's older one."""

    published = ("mmengine.runner", "Runner")
    _viewed: Runner
    stage: Mode
    """Which loop is calling: MMCV's `mode`."""
    inner_iter: int
    """Of the batch that the loop is at."""
    data_batch: Any
    message_hub: HubView
    visualizer: Any
    train_loop: LoopView
    val_loop: LoopView
    test_loop: LoopView

    def __init__(self, runner: Runner) -> None:
        super().__init__(
            runner,
            stage=getattr(runner, "mode", "train"),
            inner_iter=0,
            data_batch=None,
            meta={},
            config=None,
        )
        hub, visualizer = bind(self)
        loops = {
            f"{mode}_loop": LoopView(getattr(runner, f"{mode}_loop", None), runner, mode)
            for mode in ("train", "val", "test")
        }
        vars(self).update(message_hub=hub, visualizer=visualizer, **loops)

    # -- where the run stands -------------------------------------------------------------------

    @property
    def _resume(self) -> bool:
        return self._viewed.resumed

    @_resume.setter
    def _resume(self, value: bool) -> None:
        self._viewed.resumed = value

    @property
    def mode(self) -> Mode:
        return self.stage

    @property
    def distributed(self) -> bool:
        return self._viewed.world_size > 1

    @property
    def deterministic(self) -> bool:
        return self._viewed.settings.deterministic

    @property
    def _epoch(self) -> int:
        return self._viewed.epoch

    @property
    def _iter(self) -> int:
        return self._viewed.iter

    @property
    def _inner_iter(self) -> int:
        return self.inner_iter

    @property
    def _max_epochs(self) -> int:
        return self._viewed.max_epochs

    @property
    def _max_iters(self) -> int | None:
        return self._viewed.max_iters

    @property
    def work_dir(self) -> FolderName:
        return FolderName(self._viewed.work_dir)

    @property
    def log_dir(self) -> FolderName:
        return FolderName(self._viewed.log_dir)

    _work_dir, _log_dir = work_dir, log_dir

    # -- parts ----------------------------------------------------------------------------------

    @property
    def cfg(self) -> ConfigView:
        """A copy for foreign hooks: what one of them sets in it reaches the others only."""
        own = vars(self)
        if own["config"] is None:
            own["config"] = ConfigView(self._viewed.cfg)
        config: ConfigView = own["config"]
        return config

    @property
    def log_processor(self) -> LogProcessorView:
        return LogProcessorView(self._viewed.message_hub, runner=self)

    @property
    def log_buffer(self) -> LogBufferView:
        return LogBufferView(self._viewed.message_hub, runner=self)

    @property
    def optim_wrapper(self) -> OptimWrapperView:
        return OptimWrapperView(self._viewed.optim_wrapper, runner=self._viewed, name=None)

    @property
    def val_evaluator(self) -> EvaluatorView:
        return self.val_loop.evaluator

    @property
    def test_evaluator(self) -> EvaluatorView:
        return self.test_loop.evaluator

    @property
    def param_schedulers(self) -> list[SchedulerView]:
        return scheduler_views(self._viewed.param_schedulers, self._viewed.state)

    @property
    def _train_loop(self) -> LoopView | None:
        return None if self._viewed.train_loop is None else self.train_loop

    @property
    def _val_loop(self) -> LoopView | None:
        return None if self._viewed.val_loop is None else self.val_loop

    @property
    def _test_loop(self) -> LoopView | None:
        return None if self._viewed.test_loop is None else self.test_loop

    @property
    def data_loader(self) -> Any:
        """The loader of the loop that is calling."""
        return getattr(self, f"{self.stage}_dataloader")

    @property
    def _hooks(self) -> list[Any]:
        return list(self._viewed.hooks)

    # -- what can be asked for ------------------------------------------------------------------

    def current_lr(self) -> list[float]:
        return self._viewed.optim_wrapper.get_lr()["lr"]

    def current_momentum(self) -> list[float]:
        return self._viewed.optim_wrapper.get_momentum()["momentum"]

    def call_hook(self, point: str = "", fn_name: str = "", **kwargs: Any) -> None:
        self._viewed.call_hook(point or fn_name, **kwargs)

    def save_checkpoint(
        self,
        out_dir: str,
        filename: str | None = None,
        file_client_args: Any = None,
        save_optimizer: bool = True,
        save_param_scheduler: bool = True,
        filename_tmpl: str | None = None,
        **_: Any,
    ) -> None:
        """Ask for a checkpoint in a folder; it is written at the loop's next safe point.

        A folder of its own takes all further checkpoints of the run, as `out_dir` of our own hook.
        With one argument that is a file name it is the runner's own `save_checkpoint`.
        """
        runner = self._viewed
        if filename is None and filename_tmpl is None and out_dir.endswith(".pth"):
            runner.save_checkpoint(out_dir)
            return
        name = filename or filename_tmpl or "epoch_{}.pth"
        if Path(out_dir).resolve() != runner.writer.store.folder.resolve():
            runner.writer.store = CheckpointStore(Path(out_dir))
        runner.state.request_save(
            SaveRequest(
                name.format(runner.epoch + 1),
                with_optimizer=save_optimizer,
                with_param_schedulers=save_param_scheduler,
                points_last=save_optimizer and save_param_scheduler,
                in_background=False,
            )
        )


def view_of(runner: Runner) -> RunnerView:
    """The one view of a runner, so that hooks can compare and store it."""
    view: RunnerView | None = vars(runner).get(_VIEW)
    if view is None:
        view = vars(runner)[_VIEW] = RunnerView(runner)
    return view


def with_view(call: Callable[..., Any], point: str) -> Callable[..., Any]:
    """A foreign hook's method for a mount point, called with the view in place of the runner."""
    words = point.split("_")
    stages: tuple[Mode, ...] = ("train", "val", "test")
    stage = next((mode for mode in stages if mode in words), None)

    def call_with_view(runner: Runner, *args: Any, **kwargs: Any) -> None:
        view = view_of(runner)
        view.stage = getattr(runner, "mode", "train") if stage is None else stage
        if point in _OF_A_BATCH:
            values = dict(zip(("batch_idx", "data_batch"), args, strict=False), **kwargs)
            view.inner_iter, view.data_batch = values["batch_idx"], values.get("data_batch")
        call(view, *args, **kwargs)

    call_with_view.__self__ = getattr(call, "__self__", None)  # type: ignore[attr-defined]
    return call_with_view


def start_of_schedules(hook: Any, point: str) -> Callable[..., Any] | None:
    """What a published scheduler hook leaves to its schedulers: the values to begin with.

    There a scheduler writes its first value when it is made; here whoever drives the schedules
    does that before training. Such a hook is known by the name of its class, or of a base.
    """
    is_driver = any(cls.__name__ == "ParamSchedulerHook" for cls in type(hook).__mro__)
    if point != "before_train" or not is_driver:
        return None

    def start(runner: Runner) -> None:
        runner.param_schedulers.update(runner.state.epoch, runner.state.optim_steps)

    start.__self__ = hook  # type: ignore[attr-defined]
    return start

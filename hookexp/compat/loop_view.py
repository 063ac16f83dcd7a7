"""The loops and evaluators of a run, as MMEngine knows them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from hookexp.compat.view import View
from hookexp.data.loader import num_batches
from hookexp.data.stream import BatchStream
from hookexp.errors import ConfigError
from hookexp.message_hub import scalars_to_floats


class EvaluatorView(View):
    """A task's metrics as an evaluator. It is asked for them once per round of batches."""

    published = ("mmengine.evaluator", "Evaluator")
    runner: Any

    def evaluate(self, size: int) -> dict[str, float]:
        """The metrics of all batches since the last time; `size` is not needed here."""
        vars(self)["has_ended"] = True
        return scalars_to_floats(self.runner.task.compute_metrics())

    @property
    def metrics(self) -> list[str]:
        """Names of what the task measures."""
        return list(self.runner.task.metric_names)


class LoopView(View):
    """A loop, and the counters that published hooks read from it; there may be no loop."""

    _viewed: Any
    runner: Any
    evaluator: EvaluatorView

    def __init__(self, viewed: Any, runner: Any, mode: str) -> None:
        evaluator = EvaluatorView(viewed, runner=runner, has_ended=True)
        super().__init__(viewed, runner=runner, mode=mode, evaluator=evaluator)

    @property
    def published(self) -> tuple[str, str]:  # type: ignore[override]
        mode = vars(self)["mode"]
        trains = "EpochBasedTrainLoop" if self.runner.by_epoch else "IterBasedTrainLoop"
        return "mmengine.runner", {"train": trains, "val": "ValLoop", "test": "TestLoop"}[mode]

    def __getattr__(self, name: str) -> Any:
        if self._viewed is None:
            raise AttributeError(f"this run has no {vars(self)['mode']} loop, so no {name!r} of it")
        return getattr(self._viewed, name)

    @property
    def run_iter(self) -> Callable[[int, Any], None]:
        """One more batch; the first of an evaluation that a hook runs by itself begins anew."""
        return partial(self._run_iter, self.__getattr__("run_iter"))

    def _run_iter(
        self, run_iter: Callable[[int, Any], None], batch_idx: int, data_batch: Any
    ) -> None:
        evaluator = vars(self.evaluator)
        if vars(self)["mode"] != "train" and evaluator["has_ended"]:
            evaluator["has_ended"] = False
            self.runner.task.reset_metrics()
        run_iter(batch_idx, data_batch)

    @property
    def dataloader(self) -> Any:
        return None if self._viewed is None else self._viewed.dataloader

    @dataloader.setter
    def dataloader(self, loader: Any) -> None:
        """Take other batches from the next epoch, or the next evaluation, on."""
        is_ours = hasattr(loader, "iterate")
        if vars(self)["mode"] == "train" and not self.runner.by_epoch:
            raise ConfigError(
                "train_loop.dataloader: a run by iterations reads one stream to its end, so its "
                "loader cannot be exchanged; train by trainer.max_epochs"
            )
        self._viewed.dataloader = loader if is_ours else BatchStream(loader)

    @property
    def total_length(self) -> int | None:
        """Batches of an evaluation."""
        return num_batches(self._viewed.dataloader)

    @property
    def stop_training(self) -> bool:
        return bool(self.runner.state.is_to_stop)

    @stop_training.setter
    def stop_training(self, value: bool) -> None:
        if value:
            self.runner.state.stop("a hook set train_loop.stop_training")

    @property
    def epoch(self) -> int:
        return int(self.runner.epoch)

    @property
    def iter(self) -> int:
        return int(self.runner.iter)

    @property
    def max_epochs(self) -> int:
        return int(self.runner.max_epochs)

    @property
    def max_iters(self) -> int | None:
        max_iters: int | None = self.runner.max_iters
        return max_iters

    @property
    def val_interval(self) -> int:
        return int(self.runner.settings.val_interval or 1)

    @property
    def val_begin(self) -> int:
        return int(self.runner.settings.val_begin)

    _epoch, _iter, _max_epochs, _max_iters = epoch, iter, max_epochs, max_iters

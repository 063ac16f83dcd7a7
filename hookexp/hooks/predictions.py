"""`PredictionsHook`: keep what the model said about each sample, to look into it later."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from torch import Tensor

from hookexp.errors import ConfigError, kind_of
from hookexp.hook import Batch, Hook, Mode, Priority
from hookexp.numeric import is_whole

if TYPE_CHECKING:
    from hookexp.runner import Runner


class PredictionsHook(Hook):
    """Writes the outputs of each validation and test into a file, one JSON object per sample.

    The files are `predictions/val_iter_<N>.jsonl` and `test_iter_<N>.jsonl` in the run's folder
    (with several ranks `..._rank<R>.jsonl`, each with its share; a second hook of this class has
    `..._<its name>.jsonl`). A line is

        {"index": 0, "target": 3, "predictions": [-1.5, 0.25, ...]}

    index          place of the sample in the evaluation, which is that in the data set unless
                   there are several ranks or the data is a stream of its own order
    target         of data that are pairs (inputs, targets)
    anything else  entries of the dict that `val_step` or `test_step` returned, of those that have
                   a value for each sample: a tensor (batch, ...) as nested lists, or a list

    All lines of a file have the columns of its first batch. Where something of another kind, such
    as a value for each class, has the length of the batch by chance, choose with `keys`.

    Numbers are written so that they read back exactly; NaN and infinities, which JSON lacks, are
    the strings "NaN", "Infinity" and "-Infinity". It is read with
    `pandas.read_json(path, lines=True)` or by `json.loads` on each line.

    A batch is written when it is there, so memory does not grow. A file has the ending `.part`
    until its evaluation is complete.

        python -m hookexp hooks=+predictions mode=test load_from=PATH
        python -m hookexp hooks=+predictions 'hooks.predictions.keys=[predictions]'

    Args:
        keys: names of the outputs to write; null for all that have a value for each sample.
        with_targets: write the targets beside them.
        interval: validations between two files; 0 for none. A test is always written.

    Raises:
        ValueError: for a negative interval.
        ConfigError: for an output called `index`, or `target` where there are targets; or where a
            batch lacks a column of the first one.
    """

    priority = Priority.LOW

    def __init__(
        self, keys: Sequence[str] | None = None, with_targets: bool = True, interval: int = 1
    ) -> None:
        if not is_whole(interval, 0):
            raise ValueError(f"interval={interval}: use a whole number, 0 (no validation) or more")
        self.keys = None if keys is None else list(keys)
        self.with_targets = with_targets
        self.interval = interval
        self._num_validations = 0
        self._num_written = 0
        self._columns: list[str] = []
        self._path = Path()
        self._file: IO[str] | None = None

    def before_val_epoch(self, runner: Runner) -> None:
        if self.interval > 0 and (self._num_validations + 1) % self.interval == 0:
            self._open(runner, "val")

    def before_test_epoch(self, runner: Runner) -> None:
        self._open(runner, "test")

    def _after_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
        mode: Mode = "train",
    ) -> None:
        if self._file is not None and mode != "train":
            self._write(data_batch, outputs or {})

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._num_validations += 1
        self._finish(runner)

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._finish(runner)

    def after_run(self, runner: Runner) -> None:
        """An evaluation that was given up has no end of its own."""
        self._close()

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        self._close()

    def state_dict(self) -> dict[str, Any]:
        return {"num_validations": self._num_validations}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._num_validations = state["num_validations"]

    def _open(self, runner: Runner, mode: Mode) -> None:
        folder = runner.work_dir / "predictions"
        folder.mkdir(exist_ok=True)
        share = f"_rank{runner.rank}" if runner.world_size > 1 else ""
        suffix = share + runner.hooks.suffix_of(self)
        self._path = folder / f"{mode}_iter_{runner.iter}{suffix}.jsonl"
        self._columns = []
        self._num_written = 0
        self._file = _draft_of(self._path).open("w", encoding="utf-8")

    def _finish(self, runner: Runner) -> None:
        if self._file is None:
            return
        self._close()
        _draft_of(self._path).replace(self._path)
        runner.logger.info("%d predictions written to %s", self._num_written, self._path)

    def _close(self) -> None:
        """What an evaluation has written until then stays, with the ending `.part`."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, batch: Batch, outputs: Mapping[str, Any]) -> None:
        assert self._file is not None
        size = _num_samples(batch)
        values = self._values(batch, outputs, size)
        columns = {key: v.tolist() if isinstance(v, Tensor) else v for key, v in values.items()}
        for n in range(size):
            row = {key: column[n] for key, column in columns.items()}
            self._file.write(_to_json(row) + "\n")
        self._num_written += size

    def _values(self, batch: Batch, outputs: Mapping[str, Any], size: int) -> dict[str, Any]:
        """What to write by column, each with one value for each sample."""
        own: dict[str, Any] = {"index": range(self._num_written, self._num_written + size)}
        is_pair = isinstance(batch, (tuple, list)) and len(batch) == 2
        if self.with_targets and is_pair and _has_one_for_each(batch[1], size):
            own["target"] = batch[1]
        by_sample = {key: v for key, v in outputs.items() if _has_one_for_each(v, size)}
        if not self._columns:
            chosen = list(by_sample) if self.keys is None else self.keys
            _refuse_names_of(own, chosen)
            self._columns = [*own, *chosen]
        values = {**by_sample, **own}
        missing = [key for key in self._columns if key not in values]
        if missing:
            raise ConfigError(
                f"hooks.predictions.keys: the task's outputs have no {missing[0]!r} with a value "
                f"for each sample of a batch of {size}; choose of those that have one: "
                f"{', '.join(by_sample) or 'none'}"
            )
        return {key: values[key] for key in self._columns}


def _refuse_names_of(own: Mapping[str, Any], chosen: Sequence[str]) -> None:
    taken = [key for key in chosen if key in own]
    if taken:
        raise ConfigError(
            f"hooks.predictions: the task has an output {taken[0]!r}, as a column of the hook's "
            "own is called; rename it, or choose others with hooks.predictions.keys"
        )


def _draft_of(path: Path) -> Path:
    return path.with_name(path.name + ".part")


def _has_one_for_each(value: Any, size: int) -> bool:
    if isinstance(value, Tensor):
        return value.dim() > 0 and len(value) == size
    return isinstance(value, (list, tuple)) and len(value) == size


def _num_samples(batch: Batch) -> int:
    """Length of the first tensor or list of a batch, which may be a tensor or hold several."""
    while isinstance(batch, (tuple, list, Mapping)):
        parts = list(batch.values()) if isinstance(batch, Mapping) else batch
        if not isinstance(parts[0], (Tensor, tuple, list, Mapping)):
            return len(parts)
        batch = parts[0]
    return len(batch)


def _to_json(row: dict[str, Any]) -> str:
    try:
        return json.dumps(row, allow_nan=False, default=_to_list)
    except ValueError:
        return json.dumps(_finite(row))


def _to_list(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.tolist()
    raise TypeError(
        f"hooks.predictions: an output holds {kind_of(value)}, which JSON does not know; "
        "choose others with hooks.predictions.keys"
    )


def _finite(value: Any) -> Any:
    """The value with what is not finite as strings that `float()` reads back."""
    if isinstance(value, Tensor):
        return _finite(value.tolist())
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else f"{'-' if value < 0 else ''}Infinity"
    return value

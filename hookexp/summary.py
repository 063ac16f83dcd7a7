"""What a run came to: its objective (the metric it is judged by) and `summary.json`."""

from __future__ import annotations

import json
import math
import os
import re
import shlex
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from hookexp import dist
from hookexp.checkpoint.store import POINTER, best_stem
from hookexp.errors import ConfigError
from hookexp.host_time import Shares
from hookexp.monitor import infer_rule, is_better

SUMMARY_FILE = "summary.json"
_ENDING = ".ending"


@dataclass
class Objective:
    """The best value of one metric over the evaluations of a run, and where it was reached."""

    name: str
    rule: str
    value: float = math.nan
    epoch: int = 0
    iter: int = 0

    def update(self, metrics: Mapping[str, float], epoch: int, iteration: int) -> None:
        value = metrics.get(self.name)
        if value is not None and is_better(value, self.value, self.rule):
            self.value, self.epoch, self.iter = value, epoch, iteration


def choose_objective(
    setting: str, metric_names: Sequence[str], rules: Mapping[str, str]
) -> Objective | None:
    """The objective of `trainer.objective`; `auto` is the first metric with a known direction.

    None if no metric's direction is known.

    Args:
        rules: directions that are set elsewhere, of the metrics that best checkpoints are kept by;
            the first of these is `auto`.

    Raises:
        ConfigError: for a metric the task does not have, or whose direction nobody tells.
    """
    if setting != "auto":
        if not metric_names:
            raise ConfigError(
                f"trainer.objective={setting}: the task does not name its metrics; write "
                f'metric_names = ("{setting}",) into its class'
            )
        if setting not in metric_names:
            raise ConfigError(
                f"trainer.objective={setting}: the task has no such metric; "
                f"it has: {', '.join(metric_names) or 'none'}"
            )
        try:
            return Objective(setting, rules.get(setting) or infer_rule(setting))
        except ValueError:
            raise ConfigError(
                f"trainer.objective={setting}: the name does not tell whether greater is better; "
                f"keep the best checkpoint by it, with hooks/checkpoint=best "
                f"hooks.checkpoint.save_best={setting} hooks.checkpoint.rule=greater (or less)"
            ) from None
    for name, rule in rules.items():
        return Objective(name, rule)
    for name in metric_names:
        try:
            return Objective(name, infer_rule(name))
        except ValueError:
            continue
    return None


@dataclass
class Summary:
    """How a run ended. Written as `summary.json` at the top of the run's folder."""

    status: str
    """`finished` or `stopped`."""
    reason: str
    """Why it stopped early, else empty."""
    objective: Objective | None
    metrics: dict[str, float]
    """Of the last evaluation."""
    epoch: int
    iter: int
    seconds: float
    exit_code: int = 0
    """What the process leaves with: not 0 if a signal stopped the run."""
    suggestions: dict[str, float] = field(default_factory=dict)
    """Values that a search of the run has found, by their keys in the config."""
    host_time: Shares = field(default_factory=Shares)
    max_epochs: int | None = None
    max_iters: int | None = None
    is_final: bool = False
    """Whether a training run is over, by its budget or by its own decision: nothing is left to
    resume unless the budget grows. Not so where a signal or a time limit stopped it."""
    checkpoints_in: str = ""
    """The folder of its checkpoints, where that is not the run's own."""

    @classmethod
    def of_run_that_is_over(
        cls, folder: Path, max_epochs: int | None, max_iters: int | None
    ) -> Summary | None:
        """How a run in this folder ended; None if there is none, or this budget lets it go on."""
        try:
            saved = json.loads((folder / SUMMARY_FILE).read_text(encoding="utf-8"))
            if not saved["is_final"] or (folder / _ENDING).exists():
                return None
            if (saved["max_epochs"], saved["max_iters"]) != (max_epochs, max_iters):
                return None
            objective = saved["objective"]
            if objective is not None:
                value = math.nan if objective["value"] is None else objective["value"]
                objective = Objective(**{**objective, "value": value})
            names = ("status", "reason", "metrics", "epoch", "iter", "seconds", "is_final")
            values = {name: saved[name] for name in names}
            elsewhere = saved.get("checkpoints_in", "")
            return cls(objective=objective, checkpoints_in=elsewhere, **values)
        except (OSError, ValueError, KeyError, TypeError):
            return None  # Without a summary that can be read, the checkpoints tell.

    @property
    def objective_value(self) -> float | None:
        """What the run returns to a sweeper."""
        if self.objective is None or math.isnan(self.objective.value):
            return None
        return self.objective.value

    def describe(
        self, folder: Path, words_of_an_evaluation: str = "mode=test", words_of_a_training: str = ""
    ) -> list[str]:
        """What a user reads at the end of a run, and may want to type next.

        Args:
            words_of_an_evaluation: what one of the same model needs on the command line; empty if
                there is no data for it.
            words_of_a_training: what the same run needs.
        """
        shown = os.path.relpath(folder)
        checkpoints = folder / self.checkpoints_in
        has_any = (checkpoints / POINTER).exists()
        how = f"stopped: {self.reason}" if self.reason else "finished"
        lines = [f"{how} after {_duration(self.seconds)}{_position(', ', self.epoch, self.iter)}"]
        if self.objective is not None and not math.isnan(self.objective.value):
            best = self.objective
            where = _position(" at ", best.epoch, best.iter)
            lines.append(f"{'best ' if where else ''}{best.name} {best.value:.4f}{where}")
        if any(not math.isfinite(value) for value in self.metrics.values()):
            lines.append("a metric is not a finite number: hooks=+check_invalid_loss finds where")
        if host_time := self.host_time.describe():
            lines.append(host_time)
        lines.append(f"folder {shown}")
        if words_of_an_evaluation and has_any:
            weights = os.path.relpath(self._best_checkpoint(checkpoints) or checkpoints)
            source = shlex.quote(f"load_from={_as_value(weights)}")
            lines.append(f"test it: python -m hookexp {words_of_an_evaluation} {source}")
        if self.exit_code and not self.is_final and has_any:
            typed = shlex.split(words_of_a_training)
            typed = [w for w in typed if w.partition("=")[0] not in ("resume", "load_from")]
            words = [*typed, f"hydra.run.dir={_as_value(shown)}", "resume=auto"]
            lines.append(f"continue it: {dist.launcher()} -m hookexp {shlex.join(words)}")
        if self.suggestions:
            found = " ".join(f"{key}={value:g}" for key, value in self.suggestions.items())
            typed = shlex.split(words_of_a_training)
            others = shlex.join(w for w in typed if w.partition("=")[0] not in self.suggestions)
            command = f"{others} {found}"
            lines.append(f"train it: python -m hookexp {command.strip()}")
        if any(folder.glob("*tfevents*")):
            lines.append(f"curves:  tensorboard --logdir {shlex.quote(shown)}")
        return lines

    def _best_checkpoint(self, folder: Path) -> Path | None:
        """The best checkpoint by the run's objective, if the run has kept one."""
        if self.objective is None:
            return None
        name = re.compile(rf"{re.escape(best_stem(self.objective.name))}_(epoch|iter)_\d+\.pth")
        best = (path for path in folder.iterdir() if name.fullmatch(path.name))
        return max(best, key=lambda path: path.stat().st_mtime, default=None)

    def write(self, folder: Path, mode: str = "train") -> None:
        """Replace the folder's summary.json; a reader never sees half of it.

        An evaluation in the folder of a training run leaves that run's summary alone, and writes
        `summary_test.json` (or `_val`) beside it.
        """
        beside = mode != "train" and (folder / POINTER).exists()
        name = f"summary_{mode}.json" if beside else SUMMARY_FILE
        temporary = folder / f".{name}.tmp"
        text = json.dumps(_valid_json(asdict(self)), indent=2)
        try:
            temporary.write_text(text + "\n", encoding="utf-8")
            temporary.replace(folder / name)
        except OSError:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)
            raise


@contextmanager
def ending(folder: Path) -> Iterator[None]:
    """Mark a folder while hooks do what they do after a run: one that is killed there is not over.

    Its summary is there by then, for those that copy it.
    """
    with suppress(OSError):
        (folder / _ENDING).touch()
    yield
    with suppress(OSError):
        (folder / _ENDING).unlink(missing_ok=True)


def _as_value(path: str) -> str:
    """A path as it has to be typed for Hydra, which reads commas, braces and such by itself."""
    if re.fullmatch(r"[A-Za-z0-9_./+ -]+", path):
        return path
    return "'" + path.replace("'", "\\'") + "'"


def _position(prefix: str, epoch: int, iteration: int) -> str:
    """Where training stood; nothing where there was none, no epoch inside the first one."""
    if iteration == 0:
        return ""
    return f"{prefix}{f'epoch {epoch}, ' if epoch else ''}iteration {iteration}"


def _duration(seconds: float) -> str:
    """Seconds as people say them: 8.3 s, 12:05 min, 3:07:00 h."""
    if round(seconds, 1) < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02} h" if hours else f"{minutes}:{rest:02} min"


def _valid_json(value: Any) -> Any:
    """JSON has no NaN and no infinity: they become null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _valid_json(item) for key, item in value.items()}
    return value

"""Another recipe from some point of the run on: other augmentation, another loss.

python -m hookexp hooks=+switch_recipe \\
    'hooks.switch_recipe.switches=[{epoch: 8, task: {loss: {_target_: torch.nn.L1Loss}}}]'
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn

from hookexp.data.loader import Loader, WorkerLoader
from hookexp.data.stream import BatchStream
from hookexp.errors import ConfigError, kind_of
from hookexp.hook import Batch, Hook, Priority
from hookexp.runner import Runner

_KEYS = ("epoch", "iter", "data", "task")


@dataclass(frozen=True)
class _Switch:
    """Values to set, by dotted paths, once so many epochs (or iterations) are finished."""

    number: int
    data: dict[str, Any]
    task: dict[str, Any]
    path: str


class SwitchRecipeHook(Hook):
    """Sets attributes of the training data set and of the task while a run goes on.

    Strong augmentation is often dropped, or the loss changed, for the last epochs (Ge et al. 2021,
    YOLOX, arXiv:2107.08430). What is set is a function of the run's position, so a resumed run has
    the recipe it would have had, with nothing saved for it. By iterations a change of the data
    holds from exactly that batch on, whatever workers or the GPU have read ahead; where the workers
    are those of a DataLoader of one's own that cannot be, and is an error before the first batch.

    Args:
        switches: dicts of `epoch` (how many are finished) or `iter`, and of `data` and/or `task`:
            values by attribute of the training data set or of the task, such as
            `{epoch: 8, data: {transform.p: 0.0}, task: {loss: {_target_: torch.nn.L1Loss}}}`.
            Paths may go through list positions and dict keys (`transforms.0.p`); a dict with
            `_target_` is made into an object.
    """

    priority = Priority.VERY_HIGH

    def __init__(self, switches: Sequence[Mapping[str, Any]]) -> None:
        self.by_epoch = all(isinstance(s, Mapping) and "epoch" in s for s in switches)
        self.switches = _checked(switches, "epoch" if self.by_epoch else "iter")
        self._for_data: list[_Switch] = []
        self._for_task: list[_Switch] = []

    def before_train(self, runner: Runner) -> None:
        if not self.switches:
            runner.logger.warning("hooks.switch_recipe.switches is empty: nothing will change")
            return
        if self.by_epoch and not runner.by_epoch:
            raise ConfigError(
                "hooks.switch_recipe.switches: this run counts iterations and has no epochs; "
                "use iter in place of epoch"
            )
        loader = runner.train_dataloader
        assert loader is not None
        self._refuse_workers_that_cannot_be_told(loader)
        self._refuse_wrong_paths(loader.dataset, runner.task)
        names = (name for switch in self.switches for name in switch.data)
        runner.checkpointer.beside.data.leave_out(names)
        self._for_data, self._for_task = list(self.switches), list(self.switches)
        # What is due at this very position comes later: a validation may still be to run before it.
        past = (runner.epoch if self.by_epoch else runner.iter) - 1
        self._change_task(runner, past)
        self._change_data(runner, loader, past)
        if not self.by_epoch:
            # Between two batches as they are fetched, which may be well before they are used.
            loader.iterate = lambda start: self._fetch(runner, loader, start)  # type: ignore[method-assign]

    def before_train_epoch(self, runner: Runner) -> None:
        if self.by_epoch and self.switches:
            assert runner.train_dataloader is not None
            self._change_task(runner, runner.epoch)
            self._change_data(runner, runner.train_dataloader, runner.epoch)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        if self._for_task and not self.by_epoch:
            self._change_task(runner, runner.iter)

    def after_run(self, runner: Runner) -> None:
        if runner.train_dataloader is not None:
            vars(runner.train_dataloader).pop("iterate", None)

    def _fetch(self, runner: Runner, loader: Loader, start: int) -> Iterator[Batch]:
        """The loader's own batches, with the changes of the data between them."""
        batches = _own_batches(loader, start)
        if not self._for_data:
            return batches
        return self._changing(runner, loader, batches, start, runner.iter - start)

    def _changing(
        self, runner: Runner, loader: Loader, batches: Iterator[Batch], start: int, before: int
    ) -> Iterator[Batch]:
        while True:
            changed = self._change_data(runner, loader, before + start)
            if changed and isinstance(loader, WorkerLoader):
                batches = _own_batches(loader, start)
            try:
                yield next(batches)
            except StopIteration:
                return
            start += 1

    def _change_data(self, runner: Runner, loader: Loader, position: int) -> bool:
        """Set what is due by now on the data set; whether anything was."""
        changed = False
        while self._for_data and self._for_data[0].number <= position:
            switch = self._for_data.pop(0)
            for name, value in switch.data.items():
                _set(loader.dataset, name, value, f"{switch.path}.data")
                self._tell(runner, f"data.{name}", value)
                changed = True
        if changed and isinstance(loader, WorkerLoader | BatchStream):
            loader.close()  # Workers have a copy of the data set; the next ones copy it anew.
        return changed

    def _change_task(self, runner: Runner, position: int) -> None:
        while self._for_task and self._for_task[0].number <= position:
            switch = self._for_task.pop(0)
            for name, value in switch.task.items():
                if isinstance(value, nn.Module):
                    value.to(runner.device)
                _set(runner.task, name, value, f"{switch.path}.task")
                self._tell(runner, f"task.{name}", value)

    def _tell(self, runner: Runner, name: str, value: Any) -> None:
        runner.logger.info("switch_recipe: %s is %r from here on", name, value)

    def _refuse_workers_that_cannot_be_told(self, loader: Loader) -> None:
        """What they have read ahead of an iteration cannot be read again, and would be lost."""
        if self.by_epoch or not isinstance(loader, BatchStream) or not loader.has_workers:
            return
        for switch in self.switches:
            if switch.data:
                raise ConfigError(
                    f"{switch.path}.data: the workers of the DataLoader in data.train have read "
                    "ahead, and it cannot go back to this iteration; use epoch in place of iter, "
                    "no workers, or the data set itself as data.train"
                )

    def _refuse_wrong_paths(self, dataset: Any, task: Any) -> None:
        """Before the first batch; paths into what an earlier switch sets cannot be known yet."""
        replaced: set[tuple[str, str]] = set()
        for switch in self.switches:
            for group, root, values in (
                ("data", dataset, switch.data),
                ("task", task, switch.task),
            ):
                for name in values:
                    parts = name.split(".")
                    prefixes = {(group, ".".join(parts[:n])) for n in range(1, len(parts))}
                    if not prefixes & replaced:
                        _holder(root, name, f"{switch.path}.{group}")
                    replaced.add((group, name))


def _own_batches(loader: Any, start: int) -> Iterator[Batch]:
    batches: Iterator[Batch] = type(loader).iterate(loader, start)
    return batches


def _checked(switches: Sequence[Mapping[str, Any]], unit: str) -> list[_Switch]:
    checked = []
    for index, switch in enumerate(switches):
        path = f"switches[{index}]"
        if not isinstance(switch, Mapping) or not ("data" in switch or "task" in switch):
            raise ValueError(
                f"{path}: use a dict with data or task, such as {{epoch: 5, data: ...}}"
            )
        for key in switch:
            if key not in _KEYS:
                raise ValueError(f"{path}.{key}: use one of {', '.join(_KEYS)}")
        number = switch.get(unit)
        if ("epoch" in switch) == ("iter" in switch) or number is None:
            raise ValueError(f"{path}: give epoch in all switches, or iter in all")
        if not isinstance(number, int) or number < 0:
            raise ValueError(f"{path}.{unit}={number}: use a whole number, 0 or more")
        data, task = switch.get("data") or {}, switch.get("task") or {}
        checked.append(_Switch(number, dict(data), dict(task), f"hooks.switch_recipe.{path}"))
    return sorted(checked, key=lambda switch: switch.number)


def _holder(root: Any, name: str, path: str) -> tuple[Any, str]:
    """The object that a dotted path's last part belongs to, and that part.

    Raises:
        ConfigError: where a part is not there; it lists what is. Also for a part of a tuple.
    """
    *parents, last = name.split(".")
    for part in parents:
        root = _get(root, part, f"{path}.{name}")
    _get(root, last, f"{path}.{name}")
    if isinstance(root, tuple):
        raise ConfigError(f"{path}.{name}: {kind_of(root)} takes no new values; set what holds it")
    return root, last


def _get(holder: Any, part: str, path: str) -> Any:
    if isinstance(holder, Mapping) and part in holder:
        return holder[part]
    if isinstance(holder, Sequence) and part.isdecimal() and int(part) < len(holder):
        return holder[int(part)]
    if hasattr(holder, part):
        return getattr(holder, part)
    if isinstance(holder, Mapping):
        there_are = [str(key) for key in holder]
    else:
        there_are = [n for n in getattr(holder, "__dict__", {}) if not n.startswith("_")]
    raise ConfigError(
        f"{path}: {type(holder).__name__} has no {part!r}; it has: {', '.join(there_are)}"
    )


def _set(root: Any, name: str, value: Any, path: str) -> None:
    holder, last = _holder(root, name, path)
    if isinstance(holder, Mapping) and last in holder:
        holder[last] = value  # type: ignore[index]
    elif isinstance(holder, Sequence) and last.isdecimal():
        holder[int(last)] = value  # type: ignore[index]
    else:
        setattr(holder, last, value)

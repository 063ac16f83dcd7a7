"""`Checkpointer`: what of a run goes into its checkpoints, and when one is put back into it.

after task.setup      `note_parts`: what there is beside the weights
after before_run      `note_weights`: hooks may have added some
then                  `load`, with after_load_checkpoint: all but what hooks hold
after before_train    `note_training`: hooks have set what they set; then `restore_hooks`
at a safe point       `save_requested`, with before_save_checkpoint
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from hookexp.checkpoint import snapshot, weights
from hookexp.checkpoint.beside import Beside
from hookexp.checkpoint.frozen import Frozen
from hookexp.checkpoint.loading import load_into, read_start
from hookexp.checkpoint.replaced import Replaced
from hookexp.checkpoint.shared_numbers import SharedNumbers
from hookexp.checkpoint.stateless_hooks import StatelessHooks
from hookexp.checkpoint.store import CheckpointStore
from hookexp.checkpoint.writer import CheckpointWriter
from hookexp.data.order import Orders, orders_of, what_differs

if TYPE_CHECKING:
    from hookexp.parts import Parts
    from hookexp.runner import Runner

logger = logging.getLogger("hookexp")


class Checkpointer:
    """Saves a run and continues it.

    Args:
        runner: has its parts by now.
        parts: say which checkpoint it begins with.
    """

    def __init__(self, runner: Runner, parts: Parts) -> None:
        self._runner = runner
        self._parts = parts
        self.writer = CheckpointWriter(CheckpointStore(parts.work_dir), parts.sinks.flush)
        self.frozen = Frozen(parts.model)
        self.note_parts()
        self.note_weights()
        self._doubts: list[StatelessHooks | SharedNumbers | Replaced] = []
        self._has_begun_training = False
        self.orders: Orders = {}
        """In which order what makes the data and the task was when training began."""
        self._to_restore: dict[str, Any] = {}

    def note_parts(self) -> None:
        """Take what there is beside the weights for the begin of training."""
        runner = self._runner
        loaders = {"data.train": runner.train_dataloader, "data.val": runner.val_dataloader}
        self.beside = Beside(
            runner.model,
            runner.task,
            runner.optim_wrapper.optimizers.items(),
            {path: loader for path, loader in loaders.items() if loader is not None},
        )

    def note_weights(self) -> None:
        """Take the model's weights for those that a checkpoint of this run may have."""
        self._shapes = weights.shapes_of(self._runner.model)

    def note_training(self) -> None:
        """Take what everything is now for what a run of this config begins with."""
        runner = self._runner
        self.frozen.note_start()
        runner.optim_wrapper.states.group_values.note_start(runner.param_schedulers.values())
        self.beside.begin()
        self._doubts = [StatelessHooks(runner), SharedNumbers(runner), Replaced(runner)]

    def load(self) -> None:
        """Load what `resume` or `load_from` name, before training begins; not again after it."""
        if self._has_begun_training:
            return
        runner, parts = self._runner, self._parts
        self._has_begun_training = runner.mode == "train"
        self.orders = self._orders()
        # Given back once it is in the run: it is as large as all of its state.
        start, parts.start = parts.start, None
        start = start or read_start(
            *(parts.resume, parts.load_from, self.writer.store, runner.model),
            trusted=parts.load_from_trusted,
        )
        if start is not None:
            runner.resumed = parts.resume is not None and runner.mode == "train"
            self._to_restore = load_into(runner, start, parts.resume_ignore)
            if runner.resumed:
                self._tell_other_orders(start.checkpoint.get("meta", {}).get("orders", {}))
            self._reopen_epoch()
            if parts.resume == "auto" and runner.resumed:
                snapshot.restore_end(runner, start.checkpoint)
        elif parts.resume == "auto":
            runner.sinks.start_over()
            runner.sinks.log_config(runner.cfg)
            logger.info(
                "resume=auto: no checkpoint in %s, training begins (it looks into the run's own "
                "folder, which hydra.run.dir=FOLDER chooses)",
                runner.work_dir,
            )
        elif runner.mode != "train":
            logger.warning(
                "mode=%s without load_from: the weights are those of initialisation", runner.mode
            )

    def _orders(self) -> Orders:
        """Of what the data and the task are made of, as they begin a training on this rank."""
        if not self._has_begun_training or self._runner.rank > 0:
            return {}
        loaders = {
            "data.train": self._runner.train_dataloader,
            "data.val": self._runner.val_dataloader,
        }
        found = orders_of(self._runner.task, "task", depth=1)
        for path, loader in loaders.items():
            found |= orders_of(getattr(loader, "dataset", None), path)
        return found

    def _tell_other_orders(self, then: Orders) -> None:
        if differs := what_differs(then, self.orders):
            logger.warning(differs)

    def _reopen_epoch(self) -> None:
        """The one epoch of a run by iterations goes on where the budget is larger than it was."""
        state, loop = self._runner.state, self._runner.train_loop
        is_one_epoch = not self._runner.by_epoch and state.batch_in_epoch == state.iter
        if is_one_epoch and loop is not None and not loop.has_spent_budget:
            state.epoch = 0

    def restore_hooks(self) -> None:
        """Put back the hooks' states and the generators; only after a resume there are any."""
        if self._to_restore:
            snapshot.restore_hooks(self._runner, self._to_restore)
            self._to_restore = {}

    def save_requested(self) -> None:
        """Write the checkpoints that were asked for. Only the loop calls this, at a safe point."""
        runner = self._runner
        requests, runner.state.save_requests = runner.state.save_requests, []
        for request in requests:
            checkpoint = snapshot.collect(runner, request)
            if doubts := weights.doubts_about_weights(checkpoint, self._shapes):
                logger.warning(doubts)
                self.note_weights()
            runner.hooks.before_save_checkpoint(runner, checkpoint=checkpoint)
            snapshot.collect_of_hooks(runner, request, checkpoint)
            snapshot.ensure_loadable(checkpoint)
            if runner.rank == 0:
                if runner.state.batch_in_epoch > 0:
                    self.beside.data.tell_of_workers()
                for doubt in self._doubts:
                    doubt.tell()
                self.writer.save(
                    checkpoint,
                    request.filename,
                    request.obsolete,
                    request.points_last,
                    request.in_background,
                )

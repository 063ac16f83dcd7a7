"""A new order of the training data in each epoch.

python -m hookexp hooks=-sampler_seed        # every epoch in the order of the first
"""

from __future__ import annotations

from hookexp.data.loader import Loader
from hookexp.hook import Hook
from hookexp.runner import Runner


class DistSamplerSeedHook(Hook):
    """Calls `set_epoch` on the sampler, or on the sampler inside the batch sampler.

    A run by iterations goes through one endless epoch, whose passes the loader orders anew by
    itself; there the epoch stays 0, so that a continued run reads on in the same sequence.
    """

    def before_train(self, runner: Runner) -> None:
        """Between two epochs the order is still that of the one that has ended.

        A validation that a resumed run begins with may read training data, as `precise_bn` does.
        """
        if runner.by_epoch and runner.epoch > 0 and runner.state.batch_in_epoch == 0:
            _order(runner.train_dataloader, runner.epoch - 1)

    def before_train_epoch(self, runner: Runner) -> None:
        _order(runner.train_dataloader, runner.epoch if runner.by_epoch else 0)


def _order(loader: Loader | None, epoch: int) -> None:
    batch_sampler = getattr(loader, "batch_sampler", None)
    for sampler in (getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None)):
        if sampler is not None and hasattr(sampler, "set_epoch"):
            sampler.set_epoch(epoch)
            return

"""A new order of the training data in each epoch.

python -m hookexp hooks=-sampler_seed        # every epoch in the order of the first
"""

from __future__ import annotations

from hookexp.hook import Hook
from hookexp.runner import Runner


class DistSamplerSeedHook(Hook):
    """Calls `set_epoch` on the sampler, or on the sampler inside the batch sampler.

    A run by iterations goes through one endless epoch, whose passes the loader orders anew by
    itself; there the epoch stays 0, so that a continued run reads on in the same sequence.
    """

    def before_train_epoch(self, runner: Runner) -> None:
        loader = runner.train_dataloader
        epoch = runner.epoch if runner.by_epoch else 0
        batch_sampler = getattr(loader, "batch_sampler", None)
        for sampler in (getattr(loader, "sampler", None), getattr(batch_sampler, "sampler", None)):
            if sampler is not None and hasattr(sampler, "set_epoch"):
                sampler.set_epoch(epoch)
                return

"""Batch norm statistics of the weights as they are, in place of those gathered on the way.

python -m hookexp hooks=+precise_bn hooks.precise_bn.num_batches=50
python -m hookexp hooks=+ema+precise_bn          # statistics that belong to the averaged weights
"""

from __future__ import annotations

from itertools import islice

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from hookexp import dist
from hookexp.data.loader import apart
from hookexp.errors import ConfigError
from hookexp.hook import Hook, Priority
from hookexp.numeric import require_whole
from hookexp.runner import Runner


class PreciseBnHook(Hook):
    """Computes batch norm's running statistics anew before a validation during training.

    Running statistics are averages over weights that have changed since; where weights move fast,
    or are averaged by `ema`, they fit no weights at all. Here they are the plain mean, each batch
    counting the same, of the means and (unbiased) variances of the first `num_batches` training
    batches of the current epoch, augmented as in training (Wu and Johnson 2021, Rethinking "batch"
    in batch norm, arXiv:2105.07576, section 3). Of a loader of the user's own they are those of
    another pass, so any `num_batches` if it shuffles; or those that training reads next, if it has
    a state_dict. Samplers, and what has a state_dict, are copied for it, other data is not.

    The new statistics stay, and training goes on moving them with batch norm's own momentum.
    Training itself reads none of them: it normalises by each batch. So weights, generators and the
    order of the data are those of a run without this hook. Batch norm that is frozen is left alone.

    Args:
        num_batches: how many training batches to read; all if there are fewer.
        interval: validations from one computation to the next.

    Raises:
        ValueError: for a number below 1.
        ConfigError: if the training data cannot be read beside training.
    """

    priority = Priority.LOW
    after = ("ema",)

    def __init__(self, num_batches: int = 100, interval: int = 1) -> None:
        require_whole("num_batches", num_batches)
        require_whole("interval", interval)
        self.num_batches = num_batches
        self.interval = interval
        self.validations = 0
        self._of_training: list[tuple[torch.Tensor, torch.Tensor]] = []
        """Statistics and what they were before a validation that has not ended."""

    def before_train(self, runner: Runner) -> None:
        if not _learning_norms(runner):
            runner.logger.warning("hooks.precise_bn: the model has no batch norm to compute for")

    def before_val(self, runner: Runner) -> None:
        # At `before_val_epoch` they may be averages that `ema` has swapped in.
        if self._is_due(runner):
            found = [s for n in _learning_norms(runner) for s in (n.running_mean, n.running_var)]
            self._of_training = [(s, s.clone()) for s in found if s is not None]

    def before_val_epoch(self, runner: Runner) -> None:
        norms = _learning_norms(runner)
        if norms and self._is_due(runner):
            self._compute(runner, norms)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        """A validation that was given up does not count: the resumed run begins it again."""
        self._of_training = []
        if runner.mode == "train":
            self.validations += 1

    def after_train(self, runner: Runner) -> None:
        """A validation that was given up has no end of its own."""
        self._put_back()

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        self._put_back()

    def state_dict(self) -> dict[str, int]:
        return {"validations": self.validations}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.validations = state["validations"]

    def _is_due(self, runner: Runner) -> bool:
        return runner.mode == "train" and self.validations % self.interval == 0

    @torch.no_grad()
    def _put_back(self) -> None:
        """A checkpoint of a validation that was given up holds what training has gathered."""
        for statistic, before in self._of_training:
            statistic.copy_(before)
        self._of_training = []

    @torch.no_grad()
    def _compute(self, runner: Runner, norms: list[_BatchNorm]) -> None:
        assert runner.train_dataloader is not None
        generators = runner.rng_state()
        momenta = [norm.momentum for norm in norms]
        counts = [norm.num_batches_tracked for norm in norms]
        try:
            batches = apart(runner.train_dataloader, runner.state.batch_in_epoch)
        except TypeError as error:
            raise ConfigError(f"hooks.precise_bn: data.train: {error}") from None
        num_read = 0
        for norm in norms:
            # On the host, which reads the count in each forward pass.
            norm.num_batches_tracked = torch.zeros((), dtype=torch.int64)
            norm.momentum = None  # The mean over all batches since the count was 0.
            norm.train()
        try:
            for data_batch in islice(batches, self.num_batches):
                runner.forward_train(data_batch)
                num_read += 1
        finally:
            for norm, momentum, count in zip(norms, momenta, counts, strict=True):
                norm.momentum, norm.num_batches_tracked = momentum, count
                norm.eval()
            runner.set_rng_state(generators)
        if num_read == 0:
            raise ConfigError(
                "hooks.precise_bn: data.train gave no batch when it was read beside training; "
                "it has to be iterable again and again"
            )
        for norm in norms:
            _average_over_ranks([norm.running_mean, norm.running_var])


def _learning_norms(runner: Runner) -> list[_BatchNorm]:
    """Batch norm with running statistics that is not frozen."""
    model = dist.unwrap(runner.model)
    frozen = runner.message_hub.get_info("frozen_params", ())
    learning = {id(p) for n, p in model.named_parameters() if p.requires_grad and n not in frozen}
    norms = (m for m in model.modules() if isinstance(m, _BatchNorm))
    return [
        norm
        for norm in norms
        if norm.running_mean is not None
        and (not norm.affine or any(id(p) in learning for p in norm.parameters()))
    ]


def _average_over_ranks(statistics: list[torch.Tensor | None]) -> None:
    if dist.world_size() == 1:
        return
    for statistic in statistics:
        assert statistic is not None
        torch.distributed.all_reduce(statistic)
        statistic /= dist.world_size()

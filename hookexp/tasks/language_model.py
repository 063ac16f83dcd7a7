"""Loss and metric for a `SupervisedTask` whose model predicts the next token at every position."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torchmetrics import Metric

_IGNORED = -100
"""The target of positions that torch's cross entropy leaves out, such as padding."""


class TokenCrossEntropy(nn.Module):
    """Cross entropy in nats per token, the mean over all positions of a batch but those of -100.

    Args:
        label_smoothing: share of the target spread evenly over the vocabulary.
    """

    def __init__(self, label_smoothing: float = 0.0) -> None:
        super().__init__()
        self.label_smoothing = label_smoothing

    def forward(self, logits: Tensor, targets: Tensor) -> Tensor:
        """A scalar from logits (batch, time, vocab) and targets (batch, time), int64."""
        return F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), label_smoothing=self.label_smoothing
        )


class Perplexity(Metric):
    """exp of the mean cross entropy per token: among how many tokens the model seems to guess.

    That of torchmetrics selects positions by a mask, which makes the host wait for the device,
    and takes the logarithm of a softmax, which is infinite for a very unlikely target.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    nats_sum: Tensor
    num_tokens: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.add_state("nats_sum", default=torch.zeros(()), dist_reduce_fx="sum")
        self.add_state("num_tokens", default=torch.zeros(()), dist_reduce_fx="sum")

    def update(self, logits: Tensor, targets: Tensor) -> None:
        """Logits (batch, time, vocab) and targets (batch, time), int64; -100 is no token."""
        self.nats_sum += F.cross_entropy(
            logits.flatten(0, 1), targets.flatten(), reduction="sum"
        ).float()
        self.num_tokens += (targets != _IGNORED).sum()

    def compute(self) -> Tensor:
        return torch.exp(self.nats_sum / self.num_tokens)

"""What torch's fused SGD needs in order to meet a parameter that gets its first gradient late."""

from __future__ import annotations

import torch
from torch.optim import Optimizer


def fill_momentum(optimizer: Optimizer) -> None:
    """Give each parameter of a fused SGD a momentum buffer of zeros, where it has none.

    Torch (2.13) makes the buffers of all parameters at once, at the first step, and its fused step
    fails if some have one and some have not: with a layer that thaws, that was added before a
    resume, or that is first used later. Beginning with zeros comes to the same, unless there is
    dampening, which spares the first gradient; with it nothing is done.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if not group["fused"] or group["momentum"] == 0 or group["dampening"] != 0:
            continue
        for parameter in group["params"]:
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)

"""Parameters that get their first gradient later than the others of their group."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from hookexp.optim.fused_sgd import fill_momentum
from hookexp.optim.wrapper import OptimWrapper

LATE = 3


def trained(fused, steps=6, nesterov=True):
    """Two layers, of which the second is used from the step `LATE` on."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    optimizer = torch.optim.SGD(
        layers.parameters(), lr=0.1, momentum=0.9, nesterov=nesterov, fused=fused
    )
    fill_momentum(optimizer)
    for step in range(steps):
        outputs = layers[0](torch.ones(2, 4))
        if step >= LATE:
            outputs = layers[1](outputs)
        outputs.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    return torch.cat([p.detach().flatten() for p in layers.parameters()])


@pytest.mark.parametrize("nesterov", [True, False])
def test_a_layer_that_is_first_used_later_trains_as_without_fusing(nesterov):
    fused, plain = trained(True, nesterov=nesterov), trained(False, nesterov=nesterov)
    assert torch.allclose(fused, plain, atol=1e-6)
    assert not torch.equal(fused, trained(True, steps=LATE, nesterov=nesterov))


def test_a_layer_that_the_checkpoint_does_not_have_can_be_stepped():
    def wrapper_of(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
        wrapper = OptimWrapper({"default": optimizer}, torch.amp.GradScaler("cpu", enabled=False))
        wrapper.states.name_parameters(model)
        return wrapper

    small, large = nn.Sequential(nn.Linear(4, 4)), nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    before = wrapper_of(small)
    before.backward(small(torch.ones(2, 4)).sum())
    before.step()
    after = wrapper_of(large)
    after.load_state_dict(before.state_dict())
    state = after.optimizer.state
    assert torch.equal(
        state[large[0].weight]["momentum_buffer"],
        before.optimizer.state[small[0].weight]["momentum_buffer"],
    )
    weight = large[1].weight.detach().clone()
    after.backward(large(torch.ones(2, 4)).sum())
    after.step()
    assert not torch.equal(large[1].weight, weight)


@pytest.mark.parametrize("options", [{"fused": False}, {"dampening": 0.5}, {"momentum": 0.0}])
def test_others_make_their_buffers_themselves(options):
    model = nn.Linear(2, 2)
    options = {"momentum": 0.9, "fused": True, **options}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, **options)
    fill_momentum(optimizer)
    assert not optimizer.state

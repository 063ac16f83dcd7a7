"""What comes back of the optimizers after a resume, and what of them the config decides."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from hookexp.optim.wrapper import OptimWrapper


@pytest.mark.parametrize("kind", ["SGD", "AdamW"])
@pytest.mark.parametrize("saved_in", [torch.contiguous_format, torch.channels_last])
def test_states_and_gradients_take_the_layout_of_the_weights(kind, saved_in):
    def wrapper_in(layout):
        torch.manual_seed(0)
        model = nn.Conv2d(3, 4, 2).to(memory_format=layout)
        options = {"momentum": 0.9} if kind == "SGD" else {}
        optimizer = getattr(torch.optim, kind)(model.parameters(), lr=0.1, fused=True, **options)
        return model, OptimWrapper(
            {"default": optimizer}, torch.amp.GradScaler("cpu", enabled=False)
        )

    def train(model, wrapper, first, end):
        for n in range(first, end):
            torch.manual_seed(n)
            wrapper.backward(model(torch.randn(2, 3, 5, 5)).square().mean())
            if n % 2:
                wrapper.step()

    goes_on_in = {torch.contiguous_format: torch.channels_last}.get(
        saved_in, torch.contiguous_format
    )
    whole, one = wrapper_in(goes_on_in)
    train(whole, one, 0, 6)
    (before, saved), (after, resumed) = wrapper_in(saved_in), wrapper_in(goes_on_in)
    train(before, saved, 0, 3)
    after.load_state_dict(before.state_dict())
    resumed.load_state_dict(copy.deepcopy(saved.state_dict()))
    strides = after.weight.stride()
    assert after.weight.grad.stride() == strides
    state = resumed.optimizer.state[after.weight]
    assert all(v.stride() == strides for v in state.values() if v.dim())
    train(after, resumed, 3, 6)
    for p, q in zip(whole.parameters(), after.parameters(), strict=True):
        torch.testing.assert_close(p, q)


def test_a_sparse_gradient_of_an_open_window_comes_back():
    def wrapper_of_an_embedding():
        model = nn.Embedding(5, 2, sparse=True)
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        return model, OptimWrapper({"default": torch.optim.SparseAdam(model.parameters())}, scaler)

    model, saved = wrapper_of_an_embedding()
    saved.backward(model(torch.tensor([1])).sum())
    other, loaded = wrapper_of_an_embedding()
    loaded.load_state_dict(saved.state_dict())
    assert other.weight.grad.is_sparse
    assert torch.equal(other.weight.grad.to_dense(), model.weight.grad.to_dense())


def test_the_count_of_steps_stays_where_torch_has_it():
    """Of a parameter that is a single number it has the same shape."""

    def wrapper_on(device):
        parameter = nn.Parameter(torch.ones((), device=device))
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        return parameter, OptimWrapper({"default": torch.optim.AdamW([parameter])}, scaler)

    parameter, saved = wrapper_on("cpu")
    parameter.square().backward()
    saved.step()
    parameter, loaded = wrapper_on("meta")
    loaded.load_state_dict(saved.state_dict())
    assert loaded.optimizer.state[parameter]["step"].device.type == "cpu"


def test_whether_a_step_is_captured_is_not_taken_from_a_checkpoint():
    """Some hooks need it, and then the count of steps has to be with the weights."""

    def wrapper_on(device, capturable):
        parameter = nn.Parameter(torch.ones(2, device=device))
        scaler = torch.amp.GradScaler("cpu", enabled=False)
        wrapper = OptimWrapper({"default": torch.optim.Adam([parameter])}, scaler)
        wrapper.param_groups[0]["capturable"] = capturable
        return parameter, wrapper

    parameter, saved = wrapper_on("cpu", False)
    parameter.sum().backward()
    saved.step()
    parameter, captured = wrapper_on("meta", True)
    captured.load_state_dict(saved.state_dict())
    assert captured.param_groups[0]["capturable"]
    step = captured.optimizer.state[parameter]["step"]
    assert (step.device.type, step.dtype) == ("meta", torch.float32)
    saved.param_groups[0]["capturable"] = True
    parameter, plain = wrapper_on("meta", False)
    plain.load_state_dict(saved.state_dict())
    assert not plain.param_groups[0]["capturable"]
    assert plain.optimizer.state[parameter]["step"].device.type == "cpu"


class OtherTypes(torch.optim.Optimizer):
    """Keeps beside each parameter what is not of the parameter's type, some of it nested."""

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})

    def step(self, closure=None):
        for parameter in self.param_groups[0]["params"]:
            master = parameter.detach().double() + 1e-9
            mask = parameter.detach() > 0
            self.state[parameter].update(
                {"step": torch.tensor(3.0), "master": master, "mask": mask, "seen": [{"n": mask}]}
            )


def wrapper_with_other_types(dtype):
    model = nn.Conv2d(3, 4, 2).to(dtype)
    optimizer = OtherTypes(model.parameters())
    return OptimWrapper({"default": optimizer}, torch.amp.GradScaler("cpu", enabled=False))


def test_states_keep_the_types_that_they_were_saved_in():
    saved, loaded = (wrapper_with_other_types(torch.bfloat16) for _ in range(2))
    saved.step()
    loaded.load_state_dict(copy.deepcopy(saved.state_dict()))
    before, after = (list(w.optimizer.state.values()) for w in (saved, loaded))
    for one, two in zip(before, after, strict=True):
        assert two["master"].dtype == torch.float64 and two["mask"].dtype == torch.bool
        assert torch.equal(one["master"], two["master"]) and torch.equal(one["mask"], two["mask"])
        assert two["seen"][0]["n"].dtype == torch.bool
        assert two["step"].dtype == torch.float32


@pytest.mark.parametrize("is_old", [False, True])
def test_states_go_with_weights_of_another_type_and_load_as_before_from_older_files(is_old):
    saved = wrapper_with_other_types(torch.bfloat16)
    loaded = wrapper_with_other_types(torch.bfloat16 if is_old else torch.float32)
    saved.step()
    state = copy.deepcopy(saved.state_dict())
    if is_old:
        del state["dtypes"]
    loaded.load_state_dict(state)
    for parameter, entries in loaded.optimizer.state.items():
        assert entries["master"].dtype == parameter.dtype


def test_whether_a_step_is_captured_is_left_to_the_hook_that_sets_it():
    def wrapper():
        parameter = nn.Parameter(torch.ones(2))
        optimizer = torch.optim.Adam([parameter], lr=0.1)
        return OptimWrapper({"default": optimizer}, torch.amp.GradScaler("cpu", enabled=False))

    def begin(states):
        for group in states.optimizers["default"].param_groups:
            group["capturable"] = True
            group["lr"] *= 0.5
        states.group_values.note_start(())

    first, rest = wrapper(), wrapper()
    begin(first.states)
    state = copy.deepcopy(first.state_dict())
    rest.load_state_dict(state)
    rest.states.hold_back_group_values(state)
    begin(rest.states)
    rest.states.group_values.put_back()
    (group,) = rest.param_groups
    assert (group["capturable"], group["lr"]) == (True, 0.05)

"""Seeds of many positions at once are those of each position."""

from __future__ import annotations

import pytest
import torch

from hookexp.seed import derive_seed, derive_seeds, rng_state, set_rng_state


@pytest.mark.parametrize("parts", [(), (0,), (2**63 - 1, 7), (3, 2**31, 12345)])
@pytest.mark.parametrize("last", [range(5), range(3, 40, 4), range(2**40, 2**40 + 3), range(0)])
def test_many_seeds_are_those_one_by_one(parts, last):
    assert derive_seeds(parts, last) == [derive_seed(*parts, n) for n in last]


@pytest.mark.parametrize("is_in_use", [True, False])
def test_gpus_have_a_state_where_they_are_in_use(monkeypatch, is_in_use):
    """Asking for it would take some hundred MiB of each GPU for a run on the CPU."""
    put_back = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: is_in_use)
    monkeypatch.setattr(torch.cuda, "get_rng_state_all", lambda: ["states"])
    monkeypatch.setattr(torch.cuda, "set_rng_state_all", put_back.append)
    state = rng_state()
    assert state.get("cuda") == (["states"] if is_in_use else None)
    set_rng_state({**state, "cuda": ["states"]})
    assert put_back == ([["states"]] if is_in_use else [])

"""Seeds of many positions at once are those of each position."""

from __future__ import annotations

import pytest

from hookexp.seed import derive_seed, derive_seeds


@pytest.mark.parametrize("parts", [(), (0,), (2**63 - 1, 7), (3, 2**31, 12345)])
@pytest.mark.parametrize("last", [range(5), range(3, 40, 4), range(2**40, 2**40 + 3), range(0)])
def test_many_seeds_are_those_one_by_one(parts, last):
    assert derive_seeds(parts, last) == [derive_seed(*parts, n) for n in last]

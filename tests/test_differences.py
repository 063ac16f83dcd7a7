"""The first place where two nested states differ is named, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from hookexp.differences import first_difference

ZERO, ONE = torch.zeros(2), torch.ones(2)


@pytest.mark.parametrize(
    ("one", "two", "difference"),
    [
        ({"a": [1, ZERO]}, {"a": [1, ZERO.clone()]}, None),
        ({"a": [1, ZERO]}, {"a": [1, ONE]}, "a[1]: differs by up to 1"),
        ({"a": ZERO}, {"a": ZERO.double()}, "a: is float64 of shape (2,), not float32 of"),
        ({"a": ZERO}, {"a": torch.zeros(2, 1)}, "a: is float32 of shape (2, 1), not float32 of"),
        (ZERO, -ZERO, ": differs by up to 0"),
        (ZERO / 0, ZERO / 0, None),
        (ZERO.to_sparse(), ZERO, None),
        (torch.zeros(2, dtype=torch.cfloat).conj(), torch.zeros(2, dtype=torch.cfloat), ": diff"),
        (float("nan"), float("nan"), None),
        ({"a": 1}, {"a": 1, "b": 2}, "b: is in one of the two alone"),
        ((1, 2), (1,), ": has 1 items, not 2"),
        ({"a": np.arange(3)}, {"a": np.array([0, 1, 3])}, "a[2]: is 3, not 2"),
        ({"a": np.arange(3)}, {"a": np.arange(3)}, None),
    ],
)
def test_the_first_difference_is_named(one, two, difference):
    found = first_difference(one, two)
    assert found == difference if difference is None else found.startswith(difference)

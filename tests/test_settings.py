"""What the trainer group allows, and when a validation is due."""

from __future__ import annotations

import pytest

from hookexp.errors import ConfigError
from hookexp.settings import TrainerSettings


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_epochs": 3, "max_iters": 5}, "max_epochs=3 and trainer.max_iters=5 are both"),
        ({"max_epochs": 0}, "trainer.max_epochs=0: use a whole number, 1 or more"),
        ({"max_epochs": -2}, "trainer.max_epochs=-2"),
        ({"max_epochs": "ten"}, "trainer.max_epochs=ten"),
        ({"max_epochs": 2.5}, "trainer.max_epochs=2.5"),
        ({"max_epochs": "3"}, r"max_epochs=3: .* 1 or more \(this is text; .*oc\.decode"),
        ({"max_epochs": True}, "trainer.max_epochs=True"),
        ({"max_iters": 0}, "trainer.max_iters=0"),
        ({"val_interval": 0}, "trainer.val_interval=0"),
        ({"val_begin": -1}, "trainer.val_begin=-1"),
        ({"precision": "fp8"}, "trainer.precision=fp8: use one of fp32, bf16, fp16"),
        ({"compile": "max"}, "trainer.compile=max"),
        ({"channels_last": "yes"}, "trainer.channels_last=yes: use true or false"),
        ({"dynamic_intervals": [[3]]}, r"trainer.dynamic_intervals: \[3\]"),
        ({"dynamic_intervals": [[5, 1], [3, 2]]}, "milestones must increase"),
    ],
)
def test_what_is_refused(values, message):
    with pytest.raises(ConfigError, match=message):
        TrainerSettings(**values)


@pytest.mark.parametrize(
    ("values", "due"),
    [
        ({"max_epochs": 5}, [1, 2, 3, 4, 5]),
        ({"max_epochs": 5, "val_interval": 2}, [2, 4, 5]),
        ({"max_epochs": 6, "val_begin": 3}, [3, 4, 5, 6]),
        ({"max_epochs": 8, "val_interval": 4, "dynamic_intervals": [[5, 1]]}, [4, 5, 6, 7, 8]),
        ({"max_iters": 10, "val_interval": 4}, [4, 8, 10]),
        ({"max_epochs": 3, "val_interval": 100}, [3]),
        ({"max_iters": 10}, [3, 6, 9, 10]),
    ],
)
def test_when_a_validation_is_due(values, due):
    settings = TrainerSettings(**values)
    assert [n for n in range(1, settings.budget + 1) if settings.validates_after(n, 3)] == due


def test_ten_epochs_if_nothing_is_said():
    settings = TrainerSettings()
    assert settings.by_epoch and settings.budget == 10

"""The rules of what is better."""

from __future__ import annotations

import math

import pytest

from hookexp.monitor import infer_rule, is_better, parse_rule

INF, NAN = math.inf, math.nan


@pytest.mark.parametrize(
    ("name", "rule"),
    [
        ("acc", "greater"),
        ("accuracy", "greater"),
        ("ACCURACY", "greater"),
        ("val/top-5", "greater"),
        ("coco/bbox_mAP_50", "greater"),
        ("ar@100", "greater"),
        ("mIoU", "greater"),
        ("top1", "greater"),
        ("val_acc5", "greater"),
        ("BinaryAccuracy", "greater"),
        ("loss", "less"),
        ("val_Loss", "less"),
        ("trainLoss", "less"),
    ],
)
def test_the_name_tells_the_rule(name, rule):
    assert infer_rule(name) == rule


def test_an_equal_name_decides_before_a_word_inside():
    # 'loss_acc' holds words of both lists, and is itself a key of the second
    assert infer_rule("loss_acc", ["acc"], ["Loss_Acc"]) == "less"
    assert infer_rule("acc_loss", ["ACC_loss"], ["loss"]) == "greater"


@pytest.mark.parametrize(
    "name",
    [
        *("error", "perplexity", ""),
        *("mape", "MAPE", "wmape", "heatmap_l2", "acceleration_error", "stop_distance", "topology"),
    ],
)
def test_a_name_that_tells_nothing_asks_for_the_rule(name):
    with pytest.raises(ValueError, match=r"none of the known words.*set rule"):
        infer_rule(name)


def test_a_name_that_tells_both_asks_for_the_rule():
    with pytest.raises(ValueError, match=r"greater_keys and less_keys.*set rule"):
        infer_rule("accuracy_loss")


def test_keys_of_ones_own():
    assert infer_rule("perplexity", less_keys=["perp"]) == "less"
    assert infer_rule("bleu", greater_keys=["BLEU"]) == "greater"


@pytest.mark.parametrize(
    ("candidate", "best", "rule", "expected"),
    [
        (2.0, 1.0, "greater", True),
        (1.0, 2.0, "greater", False),
        (1.0, 2.0, "less", True),
        (2.0, 1.0, "less", False),
        (1.0, 1.0, "greater", False),
        (1.0, 1.0, "less", False),
        (NAN, 1.0, "greater", False),
        (NAN, None, "less", False),
        (NAN, NAN, "less", False),
        (1.0, None, "less", True),
        (1.0, NAN, "greater", True),
        (-INF, None, "greater", True),
        (INF, 1.0, "greater", True),
        (INF, INF, "greater", False),
        (INF, 1.0, "less", False),
        (1.0, INF, "less", True),
        (-INF, -INF, "less", False),
    ],
)
def test_what_is_better(candidate, best, rule, expected):
    assert is_better(candidate, best, rule) is expected


@pytest.mark.parametrize("rule", ["greater", "less"])
def test_min_delta_has_to_be_passed(rule):
    sign = 1 if rule == "greater" else -1
    assert not is_better(1 + sign * 0.25, 1.0, rule, min_delta=0.25)
    assert is_better(1 + sign * 0.375, 1.0, rule, min_delta=0.25)
    assert is_better(0.0, sign * -INF, rule, min_delta=0.25)


@pytest.mark.parametrize("rule", ["max", "Greater", "", None])
def test_an_unknown_rule_is_an_error(rule):
    with pytest.raises(ValueError, match="greater or less"):
        parse_rule(rule)
    with pytest.raises(ValueError, match="greater or less"):
        is_better(1.0, None, rule)

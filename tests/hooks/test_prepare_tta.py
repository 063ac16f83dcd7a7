"""Predictions of a test against those averaged by hand."""

from __future__ import annotations

from collections import namedtuple
from functools import partial

import pytest
import torch
from fakes import TinyData, TinyModel, TinyTask
from omegaconf import OmegaConf

from hookexp.compose.conf_dir import conf_dir
from hookexp.compose.instantiate import instantiate
from hookexp.hook import Hook, Priority
from hookexp.hooks.ema import EMAHook
from hookexp.hooks.prepare_tta import PrepareTTAHook, mean, mean_probability

DATA = TinyData(8)
FLIP = partial(torch.flip, dims=[-1])


class Predict(TinyTask):
    def val_step(self, model, batch):
        return {**super().val_step(model, batch), "predictions": model(batch[0])}


class Kept(Hook):
    """The predictions of each batch, and whether the model's forward is its own at the end."""

    priority = Priority.LOWEST

    def __init__(self):
        self.val, self.test = [], []
        self.is_put_back = []

    def after_val_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.val.append(outputs["predictions"])

    def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        self.test.append(outputs["predictions"])

    def after_run(self, runner):
        self.is_put_back.append("forward" not in vars(runner.model))


def plain(model, inputs):
    model.eval()
    with torch.no_grad():
        return model(inputs)


def sum_of(outputs):
    return torch.stack(list(outputs)).sum(0)


def test_a_test_averages_over_the_transforms_and_the_model_is_put_back(make_runner):
    kept = Kept()
    tta = PrepareTTAHook([torch.nn.Identity(), FLIP, lambda x: x + 1])
    runner = make_runner({"tta": tta, "kept": kept}, max_epochs=1, task=Predict())
    runner.run("train")
    runner.run("test")
    x, model = DATA.inputs, runner.model
    by_hand = (plain(model, x) + plain(model, x.flip(-1)) + plain(model, x + 1)) / 3
    assert torch.allclose(kept.test[0], by_hand, atol=1e-6)
    assert torch.allclose(kept.val[0], plain(model, x), atol=1e-6)
    assert not torch.allclose(kept.test[0], kept.val[0], atol=1e-3)
    assert kept.is_put_back == [True, True]


def test_the_transforms_are_all_there_is(make_runner):
    kept = Kept()
    runner = make_runner({"tta": PrepareTTAHook([FLIP]), "kept": kept}, task=Predict())
    runner.run("test")
    assert torch.allclose(kept.test[0], plain(runner.model, DATA.inputs.flip(-1)), atol=1e-6)


@pytest.mark.parametrize("merge", [sum_of, f"{__name__}.sum_of"])
def test_a_merge_of_ones_own(make_runner, merge):
    kept = Kept()
    tta = PrepareTTAHook([torch.nn.Identity(), torch.nn.Identity()], merge=merge)
    runner = make_runner({"tta": tta, "kept": kept}, task=Predict())
    runner.run("test")
    assert torch.allclose(kept.test[0], 2 * plain(runner.model, DATA.inputs), atol=1e-6)


def test_it_looks_with_averaged_weights_where_there_are_some(make_runner):
    kept = Kept()
    hooks = {"ema": EMAHook(momentum=0.1), "tta": PrepareTTAHook([FLIP]), "kept": kept}
    runner = make_runner(hooks, max_epochs=1, task=Predict())
    runner.run("train")
    runner.run("test")
    raw = plain(runner.model, DATA.inputs.flip(-1))
    hooks["ema"]._averages.exchange()
    assert torch.allclose(kept.test[0], plain(runner.model, DATA.inputs.flip(-1)), atol=1e-6)
    assert not torch.allclose(kept.test[0], raw, atol=1e-3)


def test_an_error_during_the_test_puts_the_model_back(make_runner):
    class Bomb(Hook):
        def before_test_iter(self, runner, batch_idx, data_batch=None):
            raise RuntimeError("boom")

    kept = Kept()
    runner = make_runner({"tta": PrepareTTAHook([FLIP]), "bomb": Bomb(), "kept": kept})
    with pytest.raises(RuntimeError, match="boom"):
        runner.run("test")
    assert kept.is_put_back == [True]


def test_a_test_that_is_stopped_puts_the_model_back(make_runner):
    class Stop(Hook):
        def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            runner.state.stop("Ctrl-C", urgent=True)

    kept = Kept()
    hooks = {"tta": PrepareTTAHook([FLIP]), "stop": Stop(), "kept": kept}
    runner = make_runner(hooks, task=Predict(), batch_size=4)
    assert runner.run("test").status == "stopped"
    assert kept.is_put_back == [True]


def test_a_model_that_had_a_forward_of_its_own_gets_it_back(make_runner):
    model = TinyModel()
    own = model.forward = partial(TinyModel.forward, model)
    make_runner({"tta": PrepareTTAHook([FLIP])}, model=model).run("test")
    assert model.forward is own


def test_the_mean_reaches_into_dicts_lists_and_tuples():
    one = {"a": torch.tensor([1.0]), "b": [(torch.tensor([2]),)]}
    two = {"a": torch.tensor([3.0]), "b": [(torch.tensor([3]),)]}
    assert mean([one, two]) == {"a": torch.tensor([2.0]), "b": [(torch.tensor([2.5]),)]}
    assert mean([torch.ones(2, dtype=torch.bfloat16)] * 2).dtype == torch.float32


def test_outputs_with_names_keep_them():
    Output = namedtuple("Output", "scores loss")
    one = Output(torch.tensor([1.0]), torch.tensor(2.0))
    two = Output(torch.tensor([3.0]), torch.tensor(4.0))
    merged = mean([one, two])
    assert merged == Output(torch.tensor([2.0]), torch.tensor(3.0))
    assert type(merged) is Output


def test_probabilities_are_averaged_as_such_and_stay_scores():
    one, two = torch.randn(2, 4, 3), torch.randn(2, 4, 3)
    by_hand = (one.softmax(1) + two.softmax(1)) / 2
    assert torch.allclose(mean_probability([one, two]).exp(), by_hand, atol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"transforms": []}, "transforms: give at least one"),
        ({"transforms": ["flip"]}, "transforms: number 1 is 'flip'; give functions"),
        ({"transforms": [FLIP], "merge": "median"}, "merge=median: use mean, mean_probability, or"),
        ({"transforms": [FLIP], "merge": "math.pi"}, "merge=math.pi: is a float, a function is"),
    ],
)
def test_what_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PrepareTTAHook(**arguments)


@pytest.mark.parametrize(("option", "looks"), [("default", 2), ("shift", 5)])
def test_the_configs_make_their_looks(option, looks):
    config = OmegaConf.load(conf_dir() / "hooks" / "prepare_tta" / f"{option}.yaml")
    assert config.pop("priority") is None
    hook = instantiate(config, "hooks.prepare_tta")
    image = torch.arange(9.0).view(1, 1, 3, 3)
    views = torch.stack([transform(image) for transform in hook.transforms])
    assert len(torch.unique(views, dim=0)) == looks
    assert torch.equal(views[0], image)
    assert torch.equal(views.flatten(1).sum(1), image.sum().expand(looks))
    if option == "default":
        assert torch.equal(views[1], image.flip(-1))

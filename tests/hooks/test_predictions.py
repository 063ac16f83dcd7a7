"""Files of predictions, read back line by line and compared with what the model said."""

from __future__ import annotations

import inspect
import json
import math

import pytest
import torch
from fakes import TinyData, TinyTask
from omegaconf import OmegaConf

from hookexp.compose.conf_dir import conf_dir
from hookexp.compose.instantiate import instantiate
from hookexp.errors import ConfigError
from hookexp.hook import Hook, Priority
from hookexp.hooks import predictions
from hookexp.hooks.checkpoint import CheckpointHook
from hookexp.hooks.predictions import PredictionsHook

DATA = TinyData(8)


class Predict(TinyTask):
    """Says more than a loss: scores, a list with names, one tensor for the whole batch."""

    def val_step(self, model, batch):
        scores = model(batch[0])
        names = [f"sample {n}" for n in range(len(scores))]
        extra = {"predictions": scores, "names": names, "bias": model.outer.bias}
        return {**super().val_step(model, batch), **extra}


def read(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(make_runner, hook, mode="train", task=None, **settings):
    runner = make_runner({"predictions": hook}, task=task or Predict(), batch_size=3, **settings)
    runner.run(mode)
    return runner, runner.work_dir / "predictions"


def test_each_sample_of_a_test_has_its_line(make_runner):
    runner, folder = run(make_runner, PredictionsHook(), "test")
    rows = read(folder / "test_iter_0.jsonl")
    assert [row["index"] for row in rows] == list(range(8))
    runner.model.eval()
    with torch.no_grad():
        said = torch.cat([runner.model(part) for part in DATA.inputs.split(3)])
    assert torch.equal(torch.tensor([row["predictions"] for row in rows]), said)
    assert torch.equal(torch.tensor([row["target"] for row in rows]), DATA.targets)
    assert [row["names"] for row in rows] == [f"sample {n % 3}" for n in range(8)]
    assert set(rows[0]) == {"index", "target", "predictions", "names"}


def test_keys_and_targets_are_chosen(make_runner):
    hook = PredictionsHook(keys=["names"], with_targets=False)
    _, folder = run(make_runner, hook, "test")
    assert read(folder / "test_iter_0.jsonl")[4] == {"index": 4, "names": "sample 1"}


def test_two_of_them_have_files_of_their_own(make_runner):
    hooks = {"scores": PredictionsHook(["predictions"]), "names": PredictionsHook(["names"])}
    runner = make_runner(hooks, task=Predict(), batch_size=3)
    runner.run("test")
    folder = runner.work_dir / "predictions"
    for suffix, key in (("", "predictions"), ("_names", "names")):
        rows = read(folder / f"test_iter_0{suffix}.jsonl")
        assert len(rows) == 8 and set(rows[7]) == {"index", "target", key}


@pytest.mark.parametrize(
    ("interval", "names"),
    [
        (1, ["val_iter_16.jsonl", "val_iter_24.jsonl", "val_iter_32.jsonl", "val_iter_8.jsonl"]),
        (2, ["val_iter_16.jsonl", "val_iter_32.jsonl"]),
        (0, []),
    ],
)
def test_validations_have_files_at_their_interval(make_runner, interval, names):
    runner, folder = run(make_runner, PredictionsHook(interval=interval), max_epochs=4)
    assert sorted(p.name for p in folder.glob("*")) == names
    for path in folder.glob("*"):
        assert [row["index"] for row in read(path)] == list(range(8))
    runner.run("test")
    assert sorted(p.name for p in folder.glob("test*")) == ["test_iter_32.jsonl"]


def test_a_resume_goes_on_counting_validations(make_runner, tmp_path):
    def train(max_epochs, resume=None):
        hooks = {"predictions": PredictionsHook(interval=3), "checkpoint": CheckpointHook()}
        runner = make_runner(hooks, task=Predict(), max_epochs=max_epochs, resume=resume)
        runner.run("train")
        return sorted(p.name for p in (tmp_path / "run").glob("predictions/*"))

    assert train(2) == []
    assert train(4, "auto") == ["val_iter_9.jsonl"]


def test_a_batch_is_on_its_way_to_the_disk_when_it_is_there(make_runner):
    sizes = []

    class Watch(Hook):
        priority = "LOWEST"

        def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            (file,) = (runner.work_dir / "predictions").glob("*")
            hook._file.flush()
            sizes.append((file.name, len(file.read_text().splitlines())))

    hook = PredictionsHook()
    hooks = {"predictions": hook, "watch": Watch()}
    make_runner(hooks, batch_size=3, task=Predict()).run("test")
    assert sizes == [("test_iter_0.jsonl.part", n) for n in (3, 6, 8)]


def test_an_evaluation_that_fails_leaves_a_part(make_runner, tmp_path):
    class Bomb(Hook):
        def after_test_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            if batch_idx == 2:
                raise RuntimeError("boom")

    hooks = {"bomb": Bomb(), "predictions": PredictionsHook()}
    with pytest.raises(RuntimeError, match="boom"):
        make_runner(hooks, batch_size=3, task=Predict()).run("test")
    (file,) = (tmp_path / "run" / "predictions").glob("*")
    assert file.name == "test_iter_0.jsonl.part"
    assert len(read(file)) == 6


@pytest.mark.parametrize("mode", ["val", "test", "train"])
def test_an_evaluation_that_is_stopped_leaves_a_part(make_runner, mode):
    class Stop(Hook):
        def _after_iter(self, runner, batch_idx, data_batch=None, outputs=None, mode="train"):
            if mode != "train" and batch_idx == 1:
                runner.state.stop("Ctrl-C", urgent=True)

    hooks = {"stop": Stop(), "predictions": PredictionsHook()}
    runner = make_runner(hooks, batch_size=3, task=Predict(), max_epochs=1)
    runner.run(mode)
    (file,) = (runner.work_dir / "predictions").glob("*")
    assert file.suffix == ".part"
    assert [row["index"] for row in read(file)] == list(range(6))


def test_what_json_cannot_say_is_a_string(make_runner):
    class Broken(TinyTask):
        def val_step(self, model, batch):
            bad = torch.tensor([math.nan, math.inf, -math.inf, 1.5])
            boxes = [{"box": torch.tensor([1.0, value])} for value in bad.tolist()]
            scores = bad.expand(len(batch[0]), 4)
            both = {"scores": scores, "found": [boxes[n % 4] for n in range(len(scores))]}
            return {**super().val_step(model, batch), **both}

    _, folder = run(make_runner, PredictionsHook(), "test", task=Broken())
    row = read(folder / "test_iter_0.jsonl")[0]
    assert row["scores"] == ["NaN", "Infinity", "-Infinity", 1.5]
    assert [float(value) for value in row["scores"][1:]] == [math.inf, -math.inf, 1.5]
    assert row["found"] == {"box": [1.0, "NaN"]}


def test_batches_that_are_dicts_have_no_targets_beside_them(make_runner):
    class ByName(TinyData):
        def get_batch(self, indices, generator):
            inputs, targets = super().get_batch(indices, generator)
            return {"meta": [inputs], "targets": targets}

    class Task(TinyTask):
        def val_step(self, model, batch):
            (inputs,) = batch["meta"]
            return {**super().val_step(model, (inputs, batch["targets"])), "said": model(inputs)}

    hook = PredictionsHook()
    runner = make_runner({"predictions": hook}, task=Task(), batch_size=3)
    runner.test_loop.dataloader.dataset = ByName(8)
    runner.run("test")
    rows = read(runner.work_dir / "predictions" / "test_iter_0.jsonl")
    assert len(rows) == 8
    assert set(rows[0]) == {"index", "said"}


def test_an_output_json_does_not_know_is_an_error(make_runner):
    class Odd(TinyTask):
        def val_step(self, model, batch):
            return {**super().val_step(model, batch), "odd": [object()] * len(batch[0])}

    with pytest.raises(TypeError, match=r"an output holds an object.*choose others"):
        run(make_runner, PredictionsHook(), "test", task=Odd())


def test_a_key_that_is_not_there_is_an_error_with_those_that_are(make_runner):
    with pytest.raises(
        ConfigError, match=r"hooks\.predictions\.keys: .*'bias'.*predictions, names"
    ):
        run(make_runner, PredictionsHook(keys=["predictions", "bias"]), "test")


class Also(TinyTask):
    """Says what else it is given: a value for each of so many."""

    def __init__(self, **sizes):
        super().__init__()
        self.sizes = sizes

    def val_step(self, model, batch):
        more = {key: torch.arange(float(size)) for key, size in self.sizes.items()}
        return {**super().val_step(model, batch), **more, "said": model(batch[0])}


@pytest.mark.parametrize("name", ["index", "target"])
def test_an_output_called_as_a_column_of_its_own_is_refused(make_runner, name):
    message = rf"hooks\.predictions: .*an output {name!r}.*rename it, or .*predictions\.keys"
    settings = {"task": Also(**{name: 4}), "batch_size": 4}
    with pytest.raises(ConfigError, match=message):
        make_runner({"predictions": PredictionsHook()}, **settings).run("test")
    hook = PredictionsHook(keys=["said"])
    runner = make_runner({"predictions": hook}, **settings)
    runner.run("test")
    rows = read(runner.work_dir / "predictions" / "test_iter_0.jsonl")
    assert [row["index"] for row in rows] == list(range(8))
    assert torch.equal(torch.tensor([row["target"] for row in rows]), DATA.targets)


def test_an_output_called_target_is_written_where_there_are_no_targets(make_runner):
    hook, task = PredictionsHook(with_targets=False), Also(target=4)
    runner = make_runner({"predictions": hook}, task=task, batch_size=4)
    runner.run("test")
    rows = read(runner.work_dir / "predictions" / "test_iter_0.jsonl")
    assert [row["target"] for row in rows] == [0, 1, 2, 3] * 2


def test_all_lines_of_a_file_have_the_columns_of_its_first_batch(make_runner):
    _, folder = run(make_runner, PredictionsHook(), "test", task=Also(per_class=2))
    rows = read(folder / "test_iter_0.jsonl")  # Of batches of 3, 3 and 2.
    assert {tuple(row) for row in rows} == {("index", "target", "said")}


def test_a_column_that_a_later_batch_cannot_fill_is_an_error(make_runner):
    message = r"hooks\.predictions\.keys: .*'per_class'.*each sample of a batch of 2; .*: said"
    with pytest.raises(ConfigError, match=message):
        run(make_runner, PredictionsHook(), "test", task=Also(per_class=3))


def test_a_negative_interval_is_refused():
    with pytest.raises(ValueError, match="interval=-1: use a whole number"):
        PredictionsHook(interval=-1)


def test_the_config_shows_every_parameter_with_its_default():
    config = OmegaConf.load(conf_dir() / "hooks" / "predictions" / "default.yaml")
    assert config.pop("priority") is None
    made, by_default = instantiate(config, "hooks.predictions"), PredictionsHook()
    for name, value in vars(by_default).items():
        assert name.startswith("_") or getattr(made, name) == value
    assert set(config) == {"_target_", *inspect.signature(PredictionsHook).parameters}
    assert PredictionsHook.priority == Priority.LOW


@pytest.mark.parametrize(
    "batch",
    [
        torch.zeros(3, 2),
        (torch.zeros(3, 2), torch.zeros(9)),
        {"image": {"pixels": torch.zeros(3)}},
        [["a", "b", "c"], torch.zeros(9)],
        ["a", "b", "c"],
    ],
)
def test_samples_are_counted_in_batches_of_any_make(batch):
    assert predictions._num_samples(batch) == 3


def test_each_of_several_ranks_has_a_file_of_its_own(make_runner):
    class Second(type(make_runner({}))):
        rank, world_size = 1, 2

    runner = make_runner({"predictions": PredictionsHook()}, task=Predict())
    runner.__class__ = Second
    runner.run("test")
    assert [p.name for p in (runner.work_dir / "predictions").iterdir()] == [
        "test_iter_0_rank1.jsonl"
    ]

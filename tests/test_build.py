"""From the real config to a run: each part comes in by config, and what is wrong is told early."""

from __future__ import annotations

import os
import random

import numpy as np
import pytest
import torch
from fakes import TinyData, TinyTask
from hydra import compose
from torch.utils.data import DataLoader, Dataset, DistributedSampler, IterableDataset

import hookexp.app  # noqa: F401  (registers the plugins)
from hookexp.build import build_hooks, build_runner
from hookexp.build_data import build_loaders
from hookexp.compose.conf_dir import with_hydra
from hookexp.compose.isolation import restored_process_state
from hookexp.compose.old_keys import drop_keys_of_old_targets
from hookexp.compose.typed import words_of_an_evaluation
from hookexp.data.loader import BatchStream, MemoryLoader, WorkerLoader
from hookexp.errors import ConfigError
from hookexp.hook import Hook
from hookexp.settings import TrainerSettings
from hookexp.sink import Sink

HERE = __name__


class Net(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.generator = torch.nn.Linear(4, 1)
        self.critic = torch.nn.Linear(4, 1)

    def forward(self, inputs):
        return self.generator(inputs)


class BySample(Dataset):
    """A data set without the in-memory protocol."""

    def __init__(self, size=12):
        self.data = TinyData(size)

    def __len__(self):
        return len(self.data)

    def __getitem__(self, index):
        return self.data[index]


class Stream(IterableDataset):
    def __iter__(self):
        data = TinyData(12)
        return iter([data[i] for i in range(12)])


def inputs_first(samples):
    return torch.stack([s[0] for s in samples]), torch.stack([s[1] for s in samples])


class Padded:
    """Collates as an object that was made with settings of its own."""

    def __init__(self, value):
        self.value = value

    def __call__(self, samples):
        return inputs_first(samples)


def ready_batches():
    return DataLoader(BySample(), batch_size=3)


class Late(Hook):
    """Writes down that it was built, to see what comes before what."""

    built = 0

    def __init__(self):
        Late.built += 1


def config(*overrides):
    with with_hydra():
        return compose("config", overrides=list(overrides))


def tiny(*overrides, **data):
    """The default config with a tiny model, task and data set, on the CPU."""
    cfg = config("trainer.max_epochs=2", "trainer.device=cpu", "sinks=none", *overrides)
    cfg.model = {"_target_": f"{HERE}.Net"}
    cfg.task = {"_target_": "fakes.TinyTask"}
    cfg.data.batch_size = 4
    for split in ("train", "val", "test"):
        cfg.data[split] = {"_target_": f"{HERE}.{data.get(split, 'BySample')}"}
    return cfg


def test_a_map_style_data_set_goes_through_torchs_loader(tmp_path):
    runner = build_runner(tiny(), tmp_path)
    assert isinstance(runner.train_dataloader, WorkerLoader)
    summary = runner.run("train")
    assert (summary.status, runner.iter) == ("finished", 6)
    assert runner.test_dataloader is None


def test_the_default_data_is_served_from_memory(tmp_path):
    runner = build_runner(config("trainer.device=cpu", "trainer.max_iters=2"), tmp_path)
    assert isinstance(runner.train_dataloader, MemoryLoader)
    assert runner.train_dataloader.batch_sampler.endless
    assert not runner.val_dataloader.batch_sampler.endless
    assert not runner.val_dataloader.batch_sampler.shuffle


@pytest.mark.parametrize(("train", "iters"), [("Stream", 6), ("ready_batches", 8)])
def test_streams_and_ready_batches_are_taken(tmp_path, train, iters):
    runner = build_runner(tiny("param_scheduler=none", train=train), tmp_path)
    assert isinstance(runner.train_dataloader, BatchStream)
    runner.run("train")
    assert runner.iter == iters


def list_of_batches():
    return list(ready_batches())


def test_a_data_set_of_ready_batches_has_no_batch_size(tmp_path):
    cfg = tiny(train="list_of_batches", val="list_of_batches")
    cfg.data.batch_size = None
    runner = build_runner(cfg, tmp_path, ("train", "val"))
    for loader in (runner.train_dataloader, runner.val_dataloader):
        assert [len(targets) for _, targets in loader] == [3, 3, 3, 3]
    runner.run("train")
    assert runner.iter == 8
    cfg.data.eval_batch_size = 4
    cfg.data.val._target_ = f"{HERE}.BySample"
    assert isinstance(build_runner(cfg, tmp_path).val_dataloader, WorkerLoader)


def test_data_that_makes_batches_by_index_needs_a_batch_size(tmp_path):
    with pytest.raises(ConfigError, match=r"^data\.batch_size=null: use a whole number, 1 or more"):
        build_runner(config("data.batch_size=null", "trainer.device=cpu"), tmp_path)


@pytest.mark.parametrize("train", ["BySample", "Stream"])
def test_a_last_batch_that_is_not_full_may_be_left_out(tmp_path, train):
    cfg = tiny("data.drop_last=true", train=train)
    cfg.data.batch_size = 5
    runner = build_runner(cfg, tmp_path, ("train", "val"))
    assert [len(targets) for _, targets in runner.train_dataloader] == [5, 5]


@pytest.mark.parametrize("train", ["BySample", "Stream"])
@pytest.mark.parametrize(
    "target",
    [
        {"_target_": f"{HERE}.inputs_first", "_partial_": True},
        {"_target_": f"{HERE}.Padded", "value": 0},
    ],
)
def test_samples_are_collated_by_a_function_of_the_config(tmp_path, monkeypatch, train, target):
    calls = []
    collate = inputs_first
    monkeypatch.setattr(f"{HERE}.inputs_first", lambda s: calls.append(len(s)) or collate(s))
    cfg = tiny("param_scheduler=none", "trainer.max_epochs=1", "+data.collate_fn=null", train=train)
    cfg.data.collate_fn = target
    build_runner(cfg, tmp_path).run("train")
    assert calls == [4, 4, 4] * 2


def dry(samples):
    """Ends as next() does in its second batch."""
    return next(
        iter([inputs_first(samples)] if samples[0][0][0] == TinyData().inputs[0, 0] else [])
    )


@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork.*:DeprecationWarning")
@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("train", ["BySample", "Stream", "own_loader"])
def test_a_collate_fn_that_ends_a_stream_does_not_end_the_data(tmp_path, train, num_workers):
    words = ["param_scheduler=none", "data.shuffle=false", "+data.collate_fn=null"]
    cfg = tiny(*words, f"data.num_workers={num_workers}", train=train)
    if train == "own_loader":
        cfg.data.train = {"_target_": f"{HERE}.own_loader", "num_workers": num_workers}
    else:
        cfg.data.collate_fn = {"_target_": f"{HERE}.dry", "_partial_": True}
    runner = build_runner(cfg, tmp_path)
    told = r"data\.collate_fn raised StopIteration, as next\(\) does"
    if train == "own_loader":
        told = r"^data: DataLoader gave 1 of its 3 batches: .* raised StopIteration"
    with pytest.raises((RuntimeError, ConfigError), match=told):
        runner.run("train")


class Filters(DataLoader):
    """Leaves batches out, as its author means it to."""

    def __iter__(self):
        return (batch for n, batch in enumerate(super().__iter__()) if n != 1)


def filtering_loader():
    return Filters(BySample(), batch_size=4)


def test_a_loader_with_a_mind_of_its_own_ends_where_it_ends(tmp_path):
    runner = build_runner(tiny("param_scheduler=none", train="filtering_loader"), tmp_path)
    runner.run("train")
    assert runner.iter == 4


def own_loader(num_workers):
    return DataLoader(BySample(), batch_size=4, collate_fn=dry, num_workers=num_workers)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            f"{HERE}.inputs_first",
            r"collate_fn=test_build\.inputs_first: use a mapping, such as \{_t",
        ),
        (
            f"{{_target_: {HERE}.inputs_first}}",
            r"collate_fn\._target_=.*'samples'.* _partial_: true",
        ),
        (f"{{_target_: {HERE}.nothing, _partial_: true}}", r"has no 'nothing'"),
        (
            "{_target_: collections.Counter}",
            r"makes a Counter, which cannot be called; .*_partial_",
        ),
    ],
)
def test_what_cannot_collate_is_refused(tmp_path, given, message):
    with pytest.raises(ConfigError, match=message):
        build_runner(tiny(f"+data.collate_fn={given}"), tmp_path)


class Sharded(Stream):
    shards_itself = True


def by_sampler():
    sampler = DistributedSampler(BySample(), num_replicas=2, rank=0)
    return DataLoader(BySample(), batch_size=3, sampler=sampler)


@pytest.mark.parametrize(
    ("train", "ranks", "told"),
    [
        ("Stream", 2, "each of the 2 ranks reads all of Stream, unless it gives a rank its share"),
        ("ready_batches", 2, "each of the 2 ranks reads all of BySample"),
        ("Stream", 1, ""),
        ("Sharded", 2, ""),
        ("by_sampler", 2, ""),
        ("BySample", 2, ""),
    ],
)
def test_a_stream_that_every_rank_reads_whole_is_told(monkeypatch, caplog, train, ranks, told):
    monkeypatch.setattr("hookexp.build_data.dist.world_size", lambda: ranks)
    with caplog.at_level("WARNING"):
        build_loaders(
            tiny(train=train).data, ["train", "val"], TrainerSettings(), torch.device("cpu"), 0
        )
    said = [message for message in caplog.messages if "ranks reads all" in message]
    assert len(said) == bool(told)
    assert all(message.startswith(f"data.train: {told}") for message in said)


@pytest.mark.parametrize(
    ("train", "does"),
    [
        ("InMemory", r"\(InMemory\) makes whole batches by get_batch itself"),
        ("ready_batches", r"\(DataLoader\) gives batches itself"),
    ],
)
def test_a_collate_fn_that_would_never_be_called_is_refused(tmp_path, train, does):
    words = f"+data.collate_fn={{_target_: {HERE}.inputs_first, _partial_: true}}"
    cfg = tiny(words, "param_scheduler=none", train=train, val=train)
    with pytest.raises(ConfigError, match=rf"^data\.collate_fn: is called with .*{does}: collate"):
        build_runner(cfg, tmp_path)
    cfg = tiny(words, "param_scheduler=none", "trainer.max_epochs=1", train=train)
    build_runner(cfg, tmp_path).run("train")  # The validation's is called.


class InMemory(TinyData):
    """A data set that makes whole batches."""


def test_data_without_a_batch_size(tmp_path):
    cfg = tiny()
    ready, by_sample = ({"_target_": f"{HERE}.{name}"} for name in ("ready_batches", "BySample"))
    cfg.data = {"train": ready, "val": ready}
    assert build_runner(cfg, tmp_path).run("train").status == "finished"
    cfg.data = {"train": ready, "val": by_sample}
    with pytest.raises(ConfigError, match=r"^data\.batch_size: is missing; give the samples"):
        build_runner(cfg, tmp_path)
    cfg.data = {"train": ready, "val": by_sample, "eval_batch_size": 3}
    assert build_runner(cfg, tmp_path).val_dataloader.batch_size == 3
    cfg.data.eval_batch_size = 0
    with pytest.raises(ConfigError, match=r"^data\.eval_batch_size=0: use a whole number, 1 or"):
        build_runner(cfg, tmp_path)


def test_a_run_by_iterations_over_a_stream(tmp_path):
    cfg = tiny("trainer.max_epochs=null", "trainer.max_iters=7", train="Stream")
    runner = build_runner(cfg, tmp_path)
    runner.run("train")
    assert runner.iter == 7


class StepsItself(TinyTask):
    trains = True


class Steps(Hook):
    trains = True


class StepsElsewhere:
    """A hook of another framework."""

    def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
        """Would step here."""


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["hooks=none"], 1),
        (["hooks=-optimizer", f"+hooks.mine._target_={HERE}.Late"], 1),
        (["hooks=default"], 0),
        (["hooks/optimizer=sam"], 0),
        (["hooks=-optimizer", f"task._target_={HERE}.StepsItself"], 0),
        (["hooks=-optimizer", f"+hooks.mine._target_={HERE}.Steps"], 0),
        (["hooks=-optimizer", f"+hooks.mine._target_={HERE}.StepsElsewhere"], 0),
        (["hooks=none", "mode=val"], 0),
    ],
)
def test_a_training_in_which_nobody_steps_is_told(tmp_path, caplog, words, told):
    cfg = tiny("param_scheduler=none", *words)
    if f"task._target_={HERE}.StepsItself" in words:
        cfg.task = {"_target_": f"{HERE}.StepsItself"}
    with caplog.at_level("WARNING"):
        build_runner(cfg, tmp_path)
    said = [m for m in caplog.messages if m.startswith("hooks: none of this run steps the opt")]
    assert len(said) == told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["hooks=+early_stopping"], ["hooks.early_stopping"]),
        (["hooks/checkpoint=best"], ["hooks.checkpoint"]),
        (["param_scheduler=plateau"], ["param_scheduler"]),
        (["hooks=+early_stopping", "mode=val"], []),
        ([], []),
    ],
)
def test_what_waits_for_a_validation_that_never_comes_is_told(tmp_path, caplog, words, told):
    cfg = tiny(*words)
    with caplog.at_level("WARNING"):
        build_runner(cfg, tmp_path)
        assert not [m for m in caplog.messages if "waits for a metric" in m]
        if "mode=val" not in words:
            cfg.data.val = None
        build_runner(cfg, tmp_path)
    said = [m.partition(":")[0] for m in caplog.messages if "waits for a metric" in m]
    assert said == told


class Unnamed(TinyTask):
    metric_names = ()


@pytest.mark.parametrize(("task", "told"), [("Unnamed", 1), ("StepsItself", 0)])
def test_a_task_that_names_no_metrics_is_told(tmp_path, caplog, task, told):
    cfg = tiny()
    cfg.task = {"_target_": f"{HERE}.{task}"}
    with caplog.at_level("WARNING"):
        build_runner(cfg, tmp_path)
    assert len([m for m in caplog.messages if f"{task}.metric_names is empty" in m]) == told


class OfAnotherFramework(Hook):
    def on_train_epoch_end(self, trainer):
        """Never called."""


def test_a_hook_that_is_never_called_is_told(caplog):
    with caplog.at_level("WARNING"):
        build_hooks(config(f"+hooks.other._target_={HERE}.OfAnotherFramework"))
    assert [m for m in caplog.messages if m.startswith("hooks.other: OfAnotherFramework has no")]


@pytest.mark.parametrize(("words", "told"), [([], 1), (["hooks=-optimizer"], 0)])
def test_a_task_that_steps_beside_the_optimizer_hook_is_told(tmp_path, caplog, words, told):
    cfg = tiny(*words)
    cfg.task = {"_target_": f"{HERE}.StepsItself"}
    with caplog.at_level("WARNING"):
        build_runner(cfg, tmp_path)
    assert len([m for m in caplog.messages if "hooks.optimizer steps too" in m]) == told


def test_in_an_evaluation_no_sample_counts_twice(tmp_path):
    runner = build_runner(tiny(), tmp_path)
    assert runner.train_dataloader.batch_sampler.repeat
    assert not runner.val_dataloader.batch_sampler.repeat


def test_hooks_keep_their_config_names_and_priorities():
    hooks = build_hooks(config("+hooks/ema=default", "hooks.ema.priority=ABOVE_NORMAL"))
    priorities = {entry.name: entry.priority for entry in hooks.entries}
    assert priorities["ema"] == 40
    assert priorities["optimizer"] == 30
    assert hooks.entries[0].name == "runtime_info"


def test_the_priority_of_a_hook_that_takes_none(tmp_path):
    cfg = config(f"+hooks.late._target_={HERE}.Late", "+hooks.late.priority=3")
    assert build_hooks(cfg).entries[0].name == "late"


def test_several_optimizers_by_the_names_of_the_models_parts(tmp_path):
    cfg = tiny("hooks=-optimizer")
    sgd = {"_target_": "torch.optim.SGD", "_partial_": True, "lr": 0.1}
    cfg.optimizer = {"generator": sgd, "critic": {**sgd, "lr": 0.2}}
    runner = build_runner(cfg, tmp_path)
    assert runner.optim_wrapper.get_lr() == {"lr": [0.1, 0.2]}
    cfg.optimizer = {"actor": sgd}
    with pytest.raises(ConfigError, match=r"optimizer\.actor: .*it has: generator, critic"):
        build_runner(cfg, tmp_path)


def test_the_same_seed_gives_the_same_run_whatever_building_drew(tmp_path):
    weights = []
    for noise in (0, 5):
        torch.manual_seed(noise)
        runner = build_runner(tiny(), tmp_path)
        runner.run("train")
        weights.append(runner.model.state_dict())
    assert all(torch.equal(weights[0][k], weights[1][k]) for k in weights[0])
    other = build_runner(tiny("seed=1"), tmp_path)
    assert not torch.equal(other.model.generator.weight, runner.model.generator.weight)


def test_a_hook_that_draws_when_it_is_made_draws_the_same(tmp_path):
    drawn = []
    for noise in (0, 5):
        np.random.seed(noise)
        cfg = tiny(f"+hooks.drawing._target_={HERE}.Drawing")
        drawn.append(build_runner(cfg, tmp_path).hooks["drawing"].drawn)
    assert drawn[0] == drawn[1]


class Drawing(Hook):
    def __init__(self):
        self.drawn = np.random.rand()


def test_a_seed_that_was_drawn_is_that_of_the_run_that_goes_on(tmp_path):
    def build(*words):
        cfg = tiny("seed=null", *words)
        cfg.data.train = {"_target_": f"{HERE}.RandomData"}
        return build_runner(cfg, tmp_path)

    first = build("hooks=none", "+hooks/optimizer=default", "+hooks/checkpoint=default")
    data = first.train_dataloader.dataset.inputs
    first.run("train")
    for resume in ("resume=auto", f"resume={tmp_path}"):
        rest = build("hooks=none", "+hooks/optimizer=default", "+hooks/checkpoint=default", resume)
        assert rest.seed == first.seed
        assert torch.equal(rest.train_dataloader.dataset.inputs, data)


class RandomData(TinyData):
    """As a data set that is split at random in its constructor."""

    def __init__(self):
        super().__init__(24)
        self.inputs = torch.rand(24, 4)


def test_no_seed_draws_one_that_the_run_knows(tmp_path):
    seeds = {build_runner(tiny("seed=null"), tmp_path).seed for _ in range(3)}
    assert len(seeds) == 3


@pytest.mark.parametrize("change", ["trainer.precision=bf16", "trainer.channels_last=true"])
def test_the_default_run_learns_in_other_formats(tmp_path, change):
    cfg = config("trainer.device=cpu", "trainer.max_epochs=3", "sinks=none", change)
    assert build_runner(cfg, tmp_path).run("train").objective_value > 0.9


@pytest.mark.parametrize(("given", "workspace"), [(None, ":4096:8"), (":16:8", ":16:8")])
def test_determinism_is_switched_on_for_the_run(tmp_path, monkeypatch, given, workspace):
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    if given:
        monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", given)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", True)
    with restored_process_state():
        build_runner(tiny("trainer.deterministic=true"), tmp_path)
        assert torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == workspace
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ.get("CUBLAS_WORKSPACE_CONFIG") == given


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["+trainer.foo=1"], r"trainer\.foo: no such setting; there are: max_epochs"),
        (["hooks.checkpoint.save_best=acc"], r"hooks\.checkpoint\.save_best=acc: .*accuracy, loss"),
        (["trainer.objective=acc"], r"trainer\.objective=acc: .*accuracy, loss"),
        (["param_scheduler=plateau", "param_scheduler.plateau.monitor=x"], r"plateau\.monitor=x"),
        (["trainer.device=cuda:77"], r"trainer\.device=cuda:77"),
        (["resume=nowhere"], r"resume=nowhere: there is no such file or folder"),
        (["load_from=auto"], r"load_from=auto"),
        (["resume=auto", "load_from=."], "give one"),
        (["+hooks.x.y=1"], r"hooks\.x: has no _target_"),
    ],
)
def test_what_is_refused_before_any_data_is_loaded(tmp_path, overrides, message):
    cfg = tiny(*overrides)
    cfg.data.train = {"_target_": "no.data.is.looked.at"}
    with pytest.raises(ConfigError, match=message):
        build_runner(cfg, tmp_path)


def test_a_checkpoint_of_another_model_is_refused_before_any_data_is_loaded(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"state_dict": {"generator.weight": torch.zeros(2, 2)}}, path)
    cfg = tiny(f"load_from={path}")
    cfg.data.train = {"_target_": "no.data.is.looked.at"}
    with pytest.raises(ConfigError, match=r"only in the model: generator\.bias \(1\)"):
        build_runner(cfg, tmp_path)


class Misspelt(Sink):
    def log_scalar(self, scalars, step, point):
        pass


def test_a_sink_whose_method_would_never_be_called_is_refused(tmp_path):
    cfg = tiny(f"+sinks.mine._target_={HERE}.Misspelt")
    with pytest.raises(ConfigError, match=r"sinks\.mine: Misspelt\.log_scalar .* log_scalars\?"):
        build_runner(cfg, tmp_path)


class HasHelpers(Sink):
    def log_image(self, name, image, step):
        self.log_images([image])

    def log_images(self, images):
        pass


def test_a_sink_may_have_helpers_of_similar_names(tmp_path):
    build_runner(tiny(f"+sinks.mine._target_={HERE}.HasHelpers"), tmp_path)


class Renames(Hook):
    def after_load_checkpoint(self, runner, checkpoint):
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {name.replace("gan.", ""): w for name, w in weights.items()}


def test_a_hook_may_make_a_checkpoint_of_another_model_one_of_this(tmp_path):
    path = tmp_path / "other.pth"
    torch.save({"state_dict": {f"gan.{n}": w for n, w in Net().state_dict().items()}}, path)
    cfg = tiny(f"load_from={path}", f"+hooks.renames._target_={HERE}.Renames")
    assert build_runner(cfg, tmp_path).run("train").status == "finished"


class AddsHead(Hook):
    def before_run(self, runner):
        add_head(runner)


class AddsHeadInSetup(TinyTask):
    def setup(self, runner):
        add_head(runner)


def add_head(runner):
    runner.model.head = torch.nn.Linear(4, 1)
    runner.optimizer.add_param_group({"params": [*runner.model.head.parameters()]})


@pytest.mark.parametrize("where", ["hooks.head", "task"])
def test_a_run_goes_on_with_the_weights_that_are_added_before_it_begins(tmp_path, where):
    def build(*words):
        cfg = tiny(*words)
        if where == "task":
            cfg.task = {"_target_": f"{HERE}.AddsHeadInSetup"}
        return build_runner(cfg, tmp_path)

    added = [] if where == "task" else [f"+hooks.head._target_={HERE}.AddsHead"]
    build("trainer.max_epochs=1", *added).run("train")
    rest = build("resume=auto", *added)
    rest.run("train")
    assert rest.resumed and rest.epoch == 2


def test_data_sets_that_give_nothing(tmp_path):
    cfg = tiny()
    cfg.data.train = {"_target_": f"{HERE}.BySample", "size": 0}
    with pytest.raises(ConfigError, match=r"data\.train: the data set is empty"):
        build_runner(cfg, tmp_path)
    cfg.data.train.size = 3
    cfg.data.drop_last = True
    with pytest.raises(
        ConfigError, match=r"3 samples make no batch of 4 .* smaller data\.batch_size"
    ):
        build_runner(cfg, tmp_path)


class NoLength(Dataset):
    def __getitem__(self, index):
        return torch.zeros(4)


def test_a_data_set_without_a_length(tmp_path):
    with pytest.raises(ConfigError, match=r"^data\.train: NoLength has no length; give it __len__"):
        build_runner(tiny(train="NoLength"), tmp_path)


def test_targets_that_make_the_wrong_thing(tmp_path):
    cfg = tiny()
    cfg.model = {"_target_": "collections.Counter"}
    with pytest.raises(ConfigError, match=r"model\._target_=collections\.Counter: makes a Counter"):
        build_runner(cfg, tmp_path)
    cfg.task = {"_target_": "collections.Counter"}
    with pytest.raises(ConfigError, match=r"task\._target_=.*no subclass of hookexp\.Task"):
        build_runner(cfg, tmp_path)


class NoRunner(Hook):
    def after_train_epoch(self):
        pass


class Unsaveable(Hook):
    def state_dict(self):
        return {"x": object()}


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.batch_size=0"], r"data\.batch_size=0: use a whole number, 1 or more"),
        (["data.num_workers=-1"], r"data\.num_workers=-1: use a whole number, 0 or more"),
        (["seed=abc"], r"seed=abc: use a whole number"),
        (["optimizer.lr=1e400"], r"^optimizer\.lr=inf: use a finite number$"),
        (["optimizer.lr=null"], r"^optimizer\.lr=null: use a number, such as 0\.01$"),
        (["optimizer=adamw", "optimizer.betas=[0.9]"], r"^optimizer\.betas=\[0\.9\]: use two numb"),
        (
            ["optimizer=adam", "optimizer.betas=[0.9,0.99,0.9]"],
            r"^optimizer\.betas=.*: use two numb",
        ),
        (["optimizer=adam", "optimizer.betas=0.9"], r"^optimizer\.betas=0\.9: use two numbers"),
        (
            ["+optimizer.g={_target_:torch.optim.SGD}", "+optimizer.d={_target_:torch.optim.SGD}"],
            r"^optimizer: is one \(torch\.optim\.SGD\), and g, d beside it; .* optimizer=NAME",
        ),
        (
            ["model={_target_:builtins.dict}"],
            r"builtins\.dict: makes a dict, which is no torch",
        ),
        (["model.width=-3"], r"^model\.width=-3: use a whole number, 1 or more$"),
        ([f"+hooks.mine._target_={HERE}.NoRunner"], r"hooks\.mine: .* has to be the runner"),
        (
            ["+hooks/early_stopping=default", "hooks.early_stopping.monitor=acuracy"],
            r"hooks\.early_stopping\.monitor=acuracy: .*there are: accuracy, loss",
        ),
    ],
)
def test_more_of_what_is_refused(tmp_path, overrides, message):
    cfg = config("trainer.device=cpu", *overrides)
    with pytest.raises(ConfigError, match=message):
        build_runner(cfg, tmp_path)


def test_a_state_that_cannot_be_saved_is_told_before_the_first_batch(tmp_path):
    runner = build_runner(tiny(f"+hooks.mine._target_={HERE}.Unsaveable"), tmp_path)
    with pytest.raises(ConfigError, match=r"hooks\.mine\.x is a builtins\.object"):
        runner.run("train")
    assert runner.iter == 0


def test_a_typed_target_drops_the_keys_of_the_one_before():
    words = [f"model._target_={HERE}.Net", "optimizer._target_=torch.optim.RMSprop"]
    cfg = config(*words)
    drop_keys_of_old_targets(cfg, words)
    assert set(cfg.model) == {"_target_"}
    assert {"lr", "momentum"} <= set(cfg.optimizer) and "nesterov" not in cfg.optimizer
    words = [f"model._target_={HERE}.Net", "model.width=3"]
    cfg = config(*words)
    drop_keys_of_old_targets(cfg, words)
    assert set(cfg.model) == {"_target_", "width"}


def test_the_device_of_a_run_is_made_torchs_current_one(tmp_path, monkeypatch):
    made = []
    monkeypatch.setattr("hookexp.build.make_current", made.append)
    build_runner(tiny(), tmp_path)
    assert made == [torch.device("cpu")]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ([], "mode=test"),
        (["data.test=null"], "mode=val"),
        (["data.test=null", "data.val=null"], ""),
    ],
)
def test_what_can_be_evaluated_is_offered_at_the_end(words, expected):
    assert words_of_an_evaluation(config(*words)) == expected


def test_a_run_is_judged_by_what_its_best_checkpoint_is_kept_by(tmp_path):
    words = ("hooks/checkpoint=best", "hooks.checkpoint.save_best=loss")
    assert build_runner(tiny(), tmp_path).objective.name == "accuracy"
    assert build_runner(tiny(*words), tmp_path).objective.name == "loss"


class WithARng(BySample):
    def __init__(self, rng):
        super().__init__()
        self.rng = rng


@pytest.mark.parametrize(
    "rng", [torch.Generator(), random.Random(0), np.random.default_rng(0), np.random.RandomState(0)]
)
def test_a_data_set_with_a_generator_of_its_own_is_doubted_once(tmp_path, caplog, rng):
    cfg = tiny()
    cfg.data.val = None
    for target, told in ((f"{HERE}.BySample", 0), (f"{HERE}.with_the_rng", 1)):
        cfg.data.train = {"_target_": target}
        RNGS[:] = [rng]
        caplog.clear()
        with caplog.at_level("WARNING"):
            build_runner(cfg, tmp_path)
        said = [message for message in caplog.messages if "a generator of its own" in message]
        assert len(said) == told
    assert said[0].startswith("data.train: WithARng.rng is")


RNGS = []


def with_the_rng():
    return WithARng(*RNGS)


GENERATOR = torch.Generator()


def shuffled_by_one_generator():
    return DataLoader(BySample(), batch_size=3, shuffle=True, generator=GENERATOR)


@pytest.mark.parametrize(
    ("budget", "val", "told"),
    [
        ("trainer.max_iters=4", "shuffled_by_one_generator", 1),
        ("trainer.max_iters=4", "ready_batches", 0),
        ("trainer.max_iters=4", "BySample", 0),
        ("trainer.max_epochs=2", "shuffled_by_one_generator", 0),
    ],
)
def test_a_generator_that_training_and_validation_share_is_doubted(
    tmp_path, caplog, budget, val, told
):
    cfg = tiny("trainer.max_epochs=null", budget, train="shuffled_by_one_generator", val=val)
    build_runner(cfg, tmp_path)
    assert caplog.text.count("data.train: draws from the same generator as data.val") == told


@pytest.mark.parametrize(("in_order", "told"), [("true", 0), ("false", 1)])
def test_batches_out_of_order_are_doubted(tmp_path, caplog, in_order, told):
    build_runner(tiny("data.num_workers=1", f"+data.in_order={in_order}"), tmp_path)
    assert caplog.text.count("data.train: in_order=False gives batches") == told

import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hookexp.data.digits import Digits
from hookexp.data.stdlib_text import VOCAB_SIZE, StdlibText
from hookexp.errors import ConfigError
from hookexp.hook import Priority
from hookexp.hook_list import HookList
from hookexp.hooks.text_samples import TextSamplesHook
from hookexp.message_hub import MessageHub
from hookexp.models.gpt import GPT

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture
def runner(tmp_path: Path) -> Any:
    """Real data, model and hub under the names the hook reads."""
    torch.manual_seed(0)
    dataset = StdlibText("val", block_size=8, max_chars=10_000)
    return SimpleNamespace(
        model=GPT(VOCAB_SIZE, block_size=8, num_layers=1, num_heads=1, width=16, dropout=0.5),
        val_dataloader=SimpleNamespace(dataset=dataset),
        test_dataloader=SimpleNamespace(dataset=dataset),
        message_hub=MessageHub(),
        logger=logging.getLogger("hookexp"),
        hooks=HookList(),
        work_dir=tmp_path,
        rank=0,
        iter=100,
    )


def sample(runner: Any, **kwargs: Any) -> str:
    TextSamplesHook(**kwargs).after_val_epoch(runner, metrics={})
    return (Path(runner.work_dir) / "samples" / f"iter_{runner.iter}.txt").read_text("utf-8")


def test_a_validation_leaves_a_text_and_posts_it(runner: Any) -> None:
    text = sample(runner, prompt="class A", length=30)
    assert text.startswith("class A")
    assert len(text) == len("class A") + 30 + len("\n")
    (artifact,) = runner.message_hub.outbox
    assert artifact.name == "samples/iter_100"
    assert artifact.path.read_text("utf-8") == text


def test_a_second_prompt_has_files_of_its_own(runner: Any) -> None:
    for name, prompt in (("text_samples", "def "), ("of_classes", "class ")):
        runner.hooks.register(TextSamplesHook(prompt, length=3), name)
    runner.hooks.after_val_epoch(runner, metrics={})
    folder = runner.work_dir / "samples"
    texts = {path.name: path.read_text("utf-8") for path in folder.iterdir()}
    assert texts["iter_100.txt"].startswith("def ")
    assert texts["iter_100_of_classes.txt"].startswith("class ")
    names = [artifact.name for artifact in runner.message_hub.outbox]
    assert names == ["samples/iter_100", "samples/iter_100_of_classes"]


def test_a_test_has_a_file_of_its_own(runner: Any) -> None:
    TextSamplesHook(length=3).after_test_epoch(runner, metrics={})
    assert [path.name for path in (runner.work_dir / "samples").iterdir()] == ["test_iter_100.txt"]


def test_the_global_generator_and_the_models_mode_are_untouched(runner: Any) -> None:
    for training in (True, False):
        runner.model.train(training)
        torch.manual_seed(5)
        sample(runner, length=5)
        drawn = torch.rand(())
        torch.manual_seed(5)
        assert torch.equal(torch.rand(()), drawn)
        assert runner.model.training is training


def test_a_sample_depends_on_weights_and_seed_alone(runner: Any) -> None:
    runner.model.train()
    first = sample(runner, length=40)
    torch.rand(3)
    assert sample(runner, length=40) == first, "dropout or the global generator had a part in it"
    assert sample(runner, length=40, seed=1) != first
    with torch.no_grad():
        runner.model.head.weight.normal_()
    assert sample(runner, length=40) != first


def test_a_low_temperature_takes_the_likeliest_character(runner: Any) -> None:
    with torch.no_grad():
        runner.model.head.weight.zero_()
        runner.model.norm.bias.fill_(1.0)
        runner.model.head.weight[runner.val_dataloader.dataset.encode("z")] = 0.1
    assert sample(runner, prompt="a", length=20, temperature=0.01) == "a" + "z" * 20 + "\n"
    assert sample(runner, prompt="a", length=20, temperature=10.0) != "a" + "z" * 20 + "\n"


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_model_that_is_broken_ends_the_sample(runner: Any, value: float, caplog: Any) -> None:
    with torch.no_grad():
        runner.model.head.weight[3, 0] = value
    text = sample(runner, prompt="class A", length=30)
    assert text == "class A\n(the model's outputs are not finite after 0 of 30 tokens)\n"
    assert caplog.text.count("text_samples: the model's outputs are not finite") == 1
    assert runner.model.training


def test_outputs_of_minus_infinity_are_tokens_that_do_not_come(runner: Any) -> None:
    z = int(runner.val_dataloader.dataset.encode("z"))
    masked = torch.full((VOCAB_SIZE,), -torch.inf).index_fill(0, torch.tensor(z), 0.0)
    runner.model.head.register_forward_hook(lambda module, args, outputs: outputs + masked)
    assert sample(runner, prompt="a", length=3) == "azzz\n"


def test_only_the_first_rank_writes(runner: Any) -> None:
    runner.rank = 1
    TextSamplesHook(length=3).after_val_epoch(runner, metrics={})
    assert list(runner.work_dir.iterdir()) == []


def test_data_that_is_no_text_is_an_error_before_training(runner: Any) -> None:
    TextSamplesHook().before_run(runner)
    runner.test_dataloader = None
    TextSamplesHook().before_run(runner)
    runner.val_dataloader = SimpleNamespace(dataset=Digits("val"))
    with pytest.raises(ConfigError, match=r"hooks\.text_samples: Digits is not text"):
        TextSamplesHook().before_run(runner)


@pytest.mark.parametrize(
    ("key", "value"),
    [("prompt", ""), ("length", 0), ("length", 2.5), ("temperature", 0.0), ("temperature", -1.0)],
)
def test_a_value_that_cannot_be_names_its_config_path(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=rf"hooks\.text_samples\.{key}"):
        TextSamplesHook(**{key: value})


def test_the_config_option_shows_every_parameter_with_its_default() -> None:
    config = OmegaConf.load(CONF / "hooks" / "text_samples" / "default.yaml")
    assert config.pop("priority") is None
    assert vars(instantiate(config)) == vars(TextSamplesHook())
    assert TextSamplesHook.priority == Priority.LOW

import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hookexp.data import stdlib_text
from hookexp.data.stdlib_text import ALPHABET, UNKNOWN, VOCAB_SIZE, StdlibText

CONF = Path(__file__).parents[2] / "conf"
MAX_CHARS = 100_000


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, bytes], None]:
    """An empty folder in the place of the standard library, and a function that adds a file."""
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    monkeypatch.setattr(stdlib_text, "_read_library", stdlib_text._read_library.__wrapped__)

    def add(name: str, content: bytes) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)

    return add


def whole_text(**kwargs: int) -> str:
    splits = [StdlibText(split, **kwargs) for split in ("train", "val", "test")]
    return splits[0].decode(torch.cat([data.text for data in splits]))


def test_known_characters_survive_encoding_and_others_become_unknown() -> None:
    data = StdlibText("val", max_chars=MAX_CHARS)
    assert data.decode(data.encode(ALPHABET)) == ALPHABET
    assert data.encode(ALPHABET).tolist() == list(range(VOCAB_SIZE - 1))
    assert data.encode("\té\N{PILE OF POO}\x7f").tolist() == [UNKNOWN] * 4
    assert data.decode(torch.tensor([UNKNOWN])) == "\ufffd"
    assert VOCAB_SIZE == 97


def test_a_target_is_the_input_one_character_later() -> None:
    for split in ("train", "val"):
        data = StdlibText(split, block_size=16, max_chars=MAX_CHARS)  # type: ignore[arg-type]
        inputs, targets = data.get_batch(torch.tensor([0, 7]), torch.Generator())
        assert inputs.is_contiguous() and targets.is_contiguous()
        assert inputs.shape == targets.shape == (2, 16)
        assert inputs.dtype == targets.dtype == torch.int64
        assert torch.equal(inputs[:, 1:], targets[:, :-1])
        written = data.decode(data.text)
        for row_inputs, row_targets in zip(inputs, targets, strict=True):
            window = data.decode(row_inputs) + data.decode(row_targets[-1:])
            assert window in written


def test_training_windows_are_shifted_by_the_generator_alone() -> None:
    data = StdlibText("train", max_chars=MAX_CHARS)
    indices = torch.arange(64)

    def batch(seed: int) -> torch.Tensor:
        return data.get_batch(indices, torch.Generator().manual_seed(seed))[0]

    torch.manual_seed(1)
    first = batch(0)
    drawn = torch.rand(())
    torch.manual_seed(1)
    assert torch.equal(torch.rand(()), drawn), "the global generator was used"
    assert torch.equal(batch(0), first)
    assert not torch.equal(batch(1), first)


def test_every_shift_of_the_first_and_the_last_window_stays_in_the_split() -> None:
    data = StdlibText("train", block_size=8, max_chars=1000)
    last = len(data) - 1
    ends = []
    for index in (0, last):
        for seed in range(50):
            generator = torch.Generator().manual_seed(seed)
            inputs, _ = data.get_batch(torch.full((20,), index), generator)
            ends.append(inputs)
    assert torch.cat(ends).max() < VOCAB_SIZE
    assert last * 8 + 7 + 8 + 1 <= len(data.text) < (last + 2) * 8 + 7 + 8 + 1


def test_evaluation_windows_are_fixed_limited_and_spread_over_the_split() -> None:
    data = StdlibText("val", block_size=16, max_chars=MAX_CHARS, max_windows=20)
    assert len(data) == 20
    first, _ = data.get_batch(torch.arange(20), torch.Generator().manual_seed(0))
    again, _ = data.get_batch(torch.arange(20), torch.Generator().manual_seed(1))
    assert torch.equal(first, again)
    assert torch.equal(first[3], data[3][0])
    begin_of_last = 19 * data.stride
    assert 0.85 * len(data.text) < begin_of_last + 17 <= len(data.text)


def test_the_splits_are_cut_from_one_text_without_overlap(
    library: Callable[[str, bytes], None],
) -> None:
    for number in range(20):
        library(f"module_{number}.py", f"value = {number}\n".encode() * 40)
    text = whole_text(block_size=8)
    assert sorted(text.splitlines()) == sorted(
        line for number in range(20) for line in [f"value = {number}"] * 40
    )
    sizes = [len(StdlibText(split, block_size=8).text) for split in ("train", "val", "test")]  # type: ignore[arg-type]
    assert [round(size / len(text), 2) for size in sizes] == [0.9, 0.05, 0.05]


def test_only_the_librarys_own_sources_are_read(library: Callable[[str, bytes], None]) -> None:
    library("own.py", b"own\n" * 500)
    library("package/inner.py", b"inner\n" * 500)
    library("strange.py", b"latin \xe9\r\n" * 500)
    library("readme.txt", b"prose\n" * 500)
    for folder in ("site-packages", "test", "json/tests", "encodings", "idlelib"):
        library(f"{folder}/other.py", b"other\n" * 500)
    text = whole_text(block_size=8)
    assert set(text.splitlines()) == {"own", "inner", "latin \ufffd"}


def test_a_python_without_sources_is_an_error(library: Callable[[str, bytes], None]) -> None:
    library("module.pyc", b"compiled")
    with pytest.raises(ValueError, match=r"no Python sources in .*choose other data"):
        StdlibText("train")


def test_too_little_text_says_what_to_change(library: Callable[[str, bytes], None]) -> None:
    library("tiny.py", b"x = 1\n" * 100)
    with pytest.raises(ValueError, match=r"val split has 30 characters.*lower block_size"):
        StdlibText("val", block_size=128)


def test_a_wrong_split_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'dev'.*train, val, test"):
        StdlibText("dev")  # type: ignore[arg-type]


def test_the_config_option_cuts_one_text_for_a_model_that_can_read_it() -> None:
    data = OmegaConf.load(CONF / "data" / "stdlib_text.yaml")
    model = OmegaConf.load(CONF / "model" / "gpt.yaml")
    assert model.vocab_size == VOCAB_SIZE
    for split in ("train", "val", "test"):
        dataset = instantiate(data[split])
        assert dataset.block_size <= model.block_size
        assert data[split].max_chars == data.train.max_chars
        assert len(dataset) > 100

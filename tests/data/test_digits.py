import gzip
from pathlib import Path

import numpy as np
import pytest
import torch
from hydra.utils import instantiate
from omegaconf import OmegaConf
from torch.utils.data import default_collate

from hookexp.data import digits
from hookexp.data.digits import Digits

CONF = Path(__file__).parents[2] / "conf"
FIRST_LABELS = {
    "train": [2, 8, 2, 6, 6, 7, 1, 9, 8, 5, 2, 8],
    "val": [1, 9, 9, 7, 1, 8, 5, 0, 8, 7, 7, 2],
    "test": [7, 3, 4, 4, 2, 4, 4, 9, 2, 9, 9, 7],
}
SIZES = {"train": 1257, "val": 270, "test": 270}


def test_splits_have_the_documented_sizes_types_and_range() -> None:
    for split, size in SIZES.items():
        data = Digits(split)
        image, label = data[0]
        assert len(data) == size
        assert image.shape == (1, 8, 8) and image.dtype == torch.float32
        assert label.shape == () and label.dtype == torch.int64
        assert data.images.min() == 0.0 and data.images.max() == 1.0
        assert data.labels.bincount().min() >= size / 20, "a class is nearly missing"


def test_every_row_of_the_file_is_in_exactly_one_split() -> None:
    with gzip.open(Path(digits.__file__).with_name("digits.csv.gz")) as file:
        expected = sorted(map(tuple, np.loadtxt(file, delimiter=",", dtype=int).tolist()))
    rows = [
        (*(image.flatten() * 16).int().tolist(), int(label))
        for split in SIZES
        for image, label in (Digits(split)[i] for i in range(SIZES[split]))
    ]
    assert sorted(rows) == expected


def test_the_split_never_moves() -> None:
    assert {split: Digits(split).labels[:12].tolist() for split in SIZES} == FIRST_LABELS


def test_a_whole_batch_is_what_collating_its_samples_gives() -> None:
    data = Digits("val")
    indices = torch.tensor([5, 0, 269, 5])
    images, labels = data.get_batch(indices, torch.Generator())
    expected_images, expected_labels = default_collate([data[i] for i in indices.tolist()])
    assert torch.equal(images, expected_images) and images.dtype == expected_images.dtype
    assert torch.equal(labels, expected_labels) and labels.dtype == expected_labels.dtype


def test_reading_leaves_the_global_generators_alone() -> None:
    digits._shuffled_rows.cache_clear()
    np.random.seed(1)
    torch.manual_seed(1)
    Digits("train").get_batch(torch.arange(4), torch.Generator())
    drawn = np.random.rand(), torch.rand(()).item()
    np.random.seed(1)
    torch.manual_seed(1)
    assert drawn == (np.random.rand(), torch.rand(()).item())


def test_a_wrong_split_lists_those_there_are() -> None:
    with pytest.raises(ValueError, match=r"'dev'.*train, val, test"):
        Digits("dev")  # type: ignore[arg-type]


@pytest.mark.parametrize("split", SIZES)
def test_the_config_option_builds_each_split(split: str) -> None:
    data = instantiate(OmegaConf.load(CONF / "data" / "digits.yaml")[split])
    assert len(data) == SIZES[split]

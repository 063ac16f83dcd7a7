import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from omegaconf import OmegaConf

from hookexp.models.gpt import GPT

CONF = Path(__file__).parents[2] / "conf"


def test_a_position_sees_itself_and_the_past_only() -> None:
    torch.manual_seed(0)
    model = GPT(vocab_size=11, block_size=12, num_layers=2, num_heads=2, width=16)
    tokens = torch.randint(11, (1, 12))
    changed = tokens.clone()
    changed[0, 5] = (tokens[0, 5] + 1) % 11
    difference = (model(tokens) - model(changed)).abs().amax(dim=2)[0]
    assert difference[:5].max() == 0.0
    assert difference[5:].min() > 0.0


def test_positions_matter() -> None:
    torch.manual_seed(0)
    model = GPT(vocab_size=11, block_size=8, num_layers=1, num_heads=2, width=16)
    logits = model(torch.full((1, 8), 3))[0]
    assert not torch.allclose(logits[2], logits[7], atol=1e-6)


def test_an_untrained_model_is_close_to_uniform() -> None:
    torch.manual_seed(0)
    model = instantiate(OmegaConf.load(CONF / "model" / "gpt.yaml"))
    tokens = torch.randint(97, (8, 129))
    loss = F.cross_entropy(model(tokens[:, :-1]).flatten(0, 1), tokens[:, 1:].flatten())
    assert loss.item() == pytest.approx(math.log(97), abs=0.1)


def test_it_learns_to_look_back() -> None:
    """The second half of each sequence repeats the first, which only attention can know."""
    torch.manual_seed(0)
    model = GPT(vocab_size=8, block_size=16, num_layers=2, num_heads=2, width=32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    half = torch.randint(8, (64, 8))
    tokens = torch.cat([half, half], dim=1)
    for _ in range(150):
        half = torch.randint(8, (64, 8))
        tokens = torch.cat([half, half], dim=1)
        loss = F.cross_entropy(model(tokens[:, :-1])[:, 7:].flatten(0, 1), tokens[:, 8:].flatten())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss.item() < 0.5 * math.log(8)


def test_dropout_acts_in_training_alone() -> None:
    torch.manual_seed(0)
    model = GPT(vocab_size=11, block_size=8, num_layers=1, num_heads=2, width=16, dropout=0.5)
    tokens = torch.randint(11, (1, 8))
    assert not torch.equal(model(tokens), model(tokens))
    model.eval()
    assert torch.equal(model(tokens), model(tokens))


def test_a_sequence_that_is_too_long_says_what_to_change() -> None:
    model = GPT(vocab_size=11, block_size=8, num_layers=1, num_heads=1, width=8)
    with pytest.raises(ValueError, match="9 tokens is longer than block_size=8"):
        model(torch.zeros(1, 9, dtype=torch.int64))


def test_heads_that_do_not_divide_the_width_are_an_error() -> None:
    with pytest.raises(ValueError, match="num_heads=3 does not divide width=16"):
        GPT(vocab_size=11, num_heads=3, width=16)

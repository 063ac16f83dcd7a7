import pytest
import torch
import torch.nn.functional as F

from hookexp.tasks.language_model import Perplexity, TokenCrossEntropy


def test_the_loss_is_the_mean_over_all_positions() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(3, 5, 7), torch.randint(7, (3, 5))
    by_hand = -logits.log_softmax(2).gather(2, targets[..., None]).mean()
    assert torch.allclose(TokenCrossEntropy()(logits, targets), by_hand)


def test_label_smoothing_charges_certainty() -> None:
    targets = torch.zeros(1, 2, dtype=torch.int64)
    certain = 20 * F.one_hot(targets, 7).float()
    assert TokenCrossEntropy()(certain, targets) < 0.01
    assert TokenCrossEntropy(label_smoothing=0.1)(certain, targets) > 1.0


def test_guessing_evenly_among_n_tokens_has_perplexity_n() -> None:
    perplexity = Perplexity()
    perplexity.update(torch.zeros(2, 5, 7), torch.randint(7, (2, 5)))
    assert perplexity.compute().item() == pytest.approx(7.0)


def test_perplexity_weighs_tokens_not_batches() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(4, 5, 7), torch.randint(7, (4, 5))
    perplexity = Perplexity()
    perplexity.update(logits[:3], targets[:3])
    perplexity.update(logits[3:], targets[3:])
    expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten()).exp()
    assert torch.allclose(perplexity.compute(), expected)


def test_positions_that_the_loss_ignores_do_not_count() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 7), torch.randint(7, (2, 5))
    targets[0, 3:] = -100
    perplexity = Perplexity()
    perplexity.update(logits, targets)
    assert torch.allclose(perplexity.compute().log(), TokenCrossEntropy()(logits, targets))


def test_a_hopeless_guess_is_finite() -> None:
    perplexity = Perplexity()
    logits = torch.tensor([[[0.0, 80.0]]])
    perplexity.update(logits.bfloat16(), torch.tensor([[0]]))
    assert perplexity.compute().isfinite()

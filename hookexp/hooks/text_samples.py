"""`TextSamplesHook`: let a language model write, so that one can read how far it has come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from hookexp.errors import ConfigError
from hookexp.hook import Hook, Priority
from hookexp.numeric import require_whole

if TYPE_CHECKING:
    from hookexp.data.loader import Loader
    from hookexp.runner import Runner


@runtime_checkable
class TextDataset(Protocol):
    """What the hook needs of the evaluation data to turn text into ids and back."""

    block_size: int
    """The longest sequence, in tokens, that the model was trained to read."""

    def encode(self, text: str) -> Tensor:
        """Ids, int64 (length,)."""

    def decode(self, ids: Tensor) -> str:
        """The text of ids (length,)."""


class TextSamplesHook(Hook):
    """Continues a prompt after each validation and test, into `samples/iter_<N>.txt`.

    A falling loss does not say what a model has learned; its text does. The sample is drawn with a
    generator of its own that starts anew each time, so training draws the same random numbers with
    this hook as without it, and two samples differ only by the weights. Weights that another hook
    has swapped in for the evaluation (EMA) are those that write. Where a model's outputs are NaN
    the sample ends, which its file and a warning say.

        python -m hookexp experiment=charlm hooks.text_samples.temperature=0.5

    Args:
        prompt: the text to continue; at least one character.
        length: tokens to add.
        temperature: divides the logits; below 1 the likely becomes likelier.
        seed: of the generator that draws the tokens.

    Raises:
        ValueError: for an empty prompt, a length below 1 or a temperature that is not positive.
    """

    priority = Priority.LOW

    def __init__(
        self, prompt: str = "def ", length: int = 300, temperature: float = 0.8, seed: int = 0
    ) -> None:
        if not prompt:
            raise ValueError("hooks.text_samples.prompt is empty: give at least one character")
        require_whole("hooks.text_samples.length", length)
        if not temperature > 0:
            raise ValueError(f"hooks.text_samples.temperature={temperature}: use a number above 0")
        self.prompt = prompt
        self.length = length
        self.temperature = temperature
        self.seed = seed

    def before_run(self, runner: Runner) -> None:
        for loader in (runner.val_dataloader, runner.test_dataloader):
            if loader is not None:
                _text_dataset(loader)

    def after_val_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._write(runner, _text_dataset(runner.val_dataloader), f"iter_{runner.iter}")

    def after_test_epoch(self, runner: Runner, metrics: dict[str, float] | None = None) -> None:
        self._write(runner, _text_dataset(runner.test_dataloader), f"test_iter_{runner.iter}")

    def _write(self, runner: Runner, dataset: TextDataset, name: str) -> None:
        if runner.rank != 0:
            return
        prompt_ids = dataset.encode(self.prompt)
        ids = self._continue(runner.model, prompt_ids, dataset.block_size)
        text, num_drawn = dataset.decode(ids), len(ids) - len(prompt_ids)
        if num_drawn < self.length:
            why = f"the model's outputs are not finite after {num_drawn} of {self.length} tokens"
            runner.logger.warning("hooks.text_samples: %s, where the sample ends", why)
            text += f"\n({why})"
        name += runner.hooks.suffix_of(self)
        path = Path(runner.work_dir) / "samples" / f"{name}.txt"
        path.parent.mkdir(exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
        runner.message_hub.post_artifact(f"samples/{name}", path)

    @torch.no_grad()
    def _continue(self, model: Any, prompt_ids: Tensor, block_size: int) -> Tensor:
        """The prompt's ids (time,) and `length` more, fewer if outputs are NaN, on the CPU."""
        device = next(model.parameters()).device
        generator = torch.Generator(device).manual_seed(self.seed)
        ids = prompt_ids.to(device)
        was_training = model.training
        model.eval()
        for _ in range(self.length):
            logits = model(ids[None, -block_size:])[0, -1].float()
            probabilities = torch.softmax(logits / self.temperature, dim=0)
            if not probabilities.isfinite().all():
                break  # Nothing can be drawn from NaN.
            ids = torch.cat([ids, torch.multinomial(probabilities, 1, generator=generator)])
        model.train(was_training)
        return ids.cpu()


def _text_dataset(loader: Loader | None) -> TextDataset:
    dataset = getattr(loader, "dataset", None)
    if not isinstance(dataset, TextDataset):
        raise ConfigError(
            f"hooks.text_samples: {type(dataset).__name__} is not text, it lacks encode, decode or "
            "block_size; choose data=stdlib_text, or leave the hook out with hooks=-text_samples"
        )
    return dataset

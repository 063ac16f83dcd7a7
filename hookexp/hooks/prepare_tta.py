"""`PrepareTTAHook`: test-time augmentation, several looks at each input of a test."""

from __future__ import annotations

import math
import pkgutil
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hookexp.errors import kind_of
from hookexp.hook import Hook, Priority

if TYPE_CHECKING:
    from hookexp.runner import Runner

Merge = Callable[[Sequence[Any]], Any]


class PrepareTTAHook(Hook):
    """During a test the model answers with the mean of its outputs over several transforms.

    The model stays the object it was, with its weights and names; only its `forward` is another
    until the test ends, also by an error or a stop. Training and validation do not see it. A test
    takes as many forward passes as there are transforms.

        python -m hookexp mode=test load_from=PATH hooks=+prepare_tta
        python -m hookexp mode=test load_from=PATH hooks=+prepare_tta/shift

    Args:
        transforms: functions of the model's first argument, a batch of inputs on the device; each
            is one look. The untransformed input is one only if the identity is in the list.
        merge: what is made of the outputs, one for each transform, in their order: `mean`;
            `mean_probability`, the log of the mean of softmax(scores) over dimension 1, so that
            losses and metrics of scores still hold; or a function of the list, or its dotted path.
            Outputs that move with the input, such as masks, need a function that moves them back.

    Raises:
        ValueError: for an empty list, or something that cannot be called.
    """

    priority = Priority.NORMAL

    def __init__(
        self, transforms: Sequence[Callable[[Any], Any]], merge: str | Merge = "mean"
    ) -> None:
        if not transforms:
            raise ValueError("transforms: give at least one, such as _target_: torch.nn.Identity")
        for n, transform in enumerate(transforms):
            if not callable(transform):
                raise ValueError(
                    f"transforms: number {n + 1} is {transform!r}; give functions, such as "
                    "{_target_: torch.flip, _partial_: true, dims: [-1]}"
                )
        self.transforms = list(transforms)
        self.merge = _checked_merge(merge)
        self._put_back: Callable[[], None] = _nothing_to_put_back

    def before_test(self, runner: Runner) -> None:
        model, forward = runner.model, runner.model.forward
        had_its_own = "forward" in vars(model)

        def forward_all(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            return self.merge([forward(t(inputs), *args, **kwargs) for t in self.transforms])

        def put_back() -> None:
            if had_its_own:
                model.forward = forward
            else:
                del model.forward

        model.forward = forward_all
        self._put_back = put_back

    def after_test(self, runner: Runner) -> None:
        self._restore()

    def after_run(self, runner: Runner) -> None:
        """A test that was given up has no end of its own."""
        self._restore()

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        self._restore()

    def _restore(self) -> None:
        put_back, self._put_back = self._put_back, _nothing_to_put_back
        put_back()


def mean(outputs: Sequence[Any]) -> Any:
    """The mean of tensors, or of each tensor in equal dicts, lists and tuples of them."""
    first = outputs[0]
    if isinstance(first, Mapping):
        return {key: mean([output[key] for output in outputs]) for key in first}
    if isinstance(first, tuple) and hasattr(first, "_fields"):
        return type(first)(*(mean(parts) for parts in zip(*outputs, strict=True)))
    if isinstance(first, (list, tuple)):
        return type(first)([mean(parts) for parts in zip(*outputs, strict=True)])
    stacked = torch.stack(list(outputs))
    return stacked.mean(0, dtype=torch.promote_types(stacked.dtype, torch.float32))


def mean_probability(outputs: Sequence[Tensor]) -> Tensor:
    """log(mean(softmax(scores))) over dimension 1, from scores (batch, classes, ...)."""
    log_probabilities = torch.stack([o.float().log_softmax(1) for o in outputs])
    return log_probabilities.logsumexp(0) - math.log(len(outputs))


MERGES: dict[str, Merge] = {"mean": mean, "mean_probability": mean_probability}


def _checked_merge(merge: str | Merge) -> Merge:
    made: Any = merge
    if isinstance(merge, str):
        try:
            made = MERGES[merge] if merge in MERGES else pkgutil.resolve_name(merge)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f"merge={merge}: use {', '.join(MERGES)}, or the dotted path of a function of the "
                f"list of outputs; this one cannot be imported ({error})"
            ) from error
    if not callable(made):
        raise ValueError(f"merge={merge}: is {kind_of(made)}, a function is needed")
    return made  # type: ignore[no-any-return]


def _nothing_to_put_back() -> None:
    pass

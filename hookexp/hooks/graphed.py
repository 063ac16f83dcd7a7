"""The whole training step as one CUDA graph: the host launches it with a single call.

python -m hookexp hooks/optimizer=graphed trainer.device=cuda data.drop_last=true
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hookexp.device import map_tensors
from hookexp.hook import Batch, Hook, Priority
from hookexp.numeric import require_whole
from hookexp.optim.capturable import (
    USE_DEFAULT,
    make_capturable,
    refusal,
    refuse_listeners,
    refuse_what_no_graph_holds,
)
from hookexp.optim.wrapper import checked_clip
from hookexp.runner import Runner
from hookexp.task import loss_of

_Step = Callable[[nn.Module, Any], dict[str, Any]]


class GraphedOptimizerHook(Hook):
    """Captures forward, backward, clip and step, and replays them for each batch.

    The forward pass is captured too, because a graph works on fixed addresses: what the backward
    pass reads, the forward pass has to have written where it was at the capture. So the weights
    are updated during the forward pass of the loop, and hooks that are called before this one at
    `after_train_iter` see the weights after the step. `after_optim_step` is where it always is.

    The first iterations run as they would without a graph, on a side stream, which is the warm-up
    that a capture needs; the result is that of hooks/optimizer=default. The graph is of batches of
    the shape that was first to come often enough: others, such as a last batch that is smaller, are
    run without it. The learning rate is a tensor on the device, so schedules go on; other
    hyper-parameters are fixed by the capture.
    See docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs for what a captured model and task
    may not do (make the host wait, depend on values in Python).

    Args:
        grad_clip: `{max_norm, norm_type}` or `{clip_value}`, the others null; null: no clipping.
        warmup_iters: iterations before the capture; torch advises at least 3.

    Raises:
        ConfigError: before the first batch, for what a graph cannot hold: a CPU, several ranks,
            fp16, listeners on before_optim_step, and so on.
    """

    priority = Priority.HIGH
    trains = True
    conflicts = ("activations", "precise_bn", "switch_recipe")
    """Each puts PyTorch's hooks on modules, runs the forward pass alone, or changes the loss."""

    def __init__(self, grad_clip: dict[str, Any] | None = None, warmup_iters: int = 3) -> None:
        require_whole("warmup_iters", warmup_iters)
        self.grad_clip = checked_clip(grad_clip or {})
        self.warmup_iters = warmup_iters
        self._undo: Callable[[], None] = _nothing

    def before_run(self, runner: Runner) -> None:
        if runner.mode != "train":
            return
        refuse_what_no_graph_holds(runner)
        runner.optim_wrapper.set_clipping(self.grad_clip)
        runner.optim_wrapper.set_to_none = True
        make_capturable(runner)
        self._undo = runner.wrap_train_step(lambda step: _GraphedStep(runner, step, self))

    def before_train(self, runner: Runner) -> None:
        make_capturable(runner)  # A checkpoint brings back what its groups were.

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        runner.state.optim_steps += 1
        runner.call_hook("after_optim_step")

    def after_run(self, runner: Runner) -> None:
        undo, self._undo = self._undo, _nothing
        undo()


class _GraphedStep:
    """A `train_step` that also steps the optimizer, from the graph as soon as there is one."""

    def __init__(self, runner: Runner, train_step: _Step, hook: GraphedOptimizerHook) -> None:
        self._runner = runner
        self._train_step = train_step
        self._warmup_iters = hook.warmup_iters
        self._is_on_gpu = runner.device.type == "cuda"
        self._stream = torch.cuda.Stream(runner.device) if self._is_on_gpu else None  # type: ignore[no-untyped-call]
        self._shape: Any = None
        self._num_seen: Counter[str] = Counter()
        self._graph: torch.cuda.CUDAGraph | None = None
        self._inputs: Any = None
        self._outputs: dict[str, Tensor] = {}

    def __call__(self, model: nn.Module, batch: Any) -> dict[str, Any]:
        shape = map_tensors(batch, _shape_of)
        if self._graph is None and self._is_warm(shape):
            self._graph, self._shape = self._captured(model, batch), shape
        if self._graph is None or shape != self._shape:
            return self._without_graph(model, batch)
        new: list[Tensor] = []
        map_tensors(batch, new.append)  # type: ignore[arg-type]
        held: list[Tensor] = []
        map_tensors(self._inputs, held.append)  # type: ignore[arg-type]
        for buffer, tensor in zip(held, new, strict=True):
            buffer.copy_(tensor, non_blocking=True)
        self._graph.replay()
        # The next replay writes to the same memory, and the message hub keeps what it is given.
        return self._noted({key: value.clone() for key, value in self._outputs.items()})

    def _is_warm(self, shape: Any) -> bool:
        """Whether the batches of a shape have been enough, this one not counted.

        The first batch of a run may be the last of an epoch, and smaller than all others.
        """
        num_before = self._num_seen[repr(shape)]
        self._num_seen[repr(shape)] += 1
        return self._is_on_gpu and num_before >= self._warmup_iters

    def _without_graph(self, model: nn.Module, batch: Any) -> dict[str, Any]:
        if self._stream is None:
            return self._noted(self._step(model, batch))
        current = torch.cuda.current_stream(self._runner.device)
        self._stream.wait_stream(current)
        with torch.cuda.stream(self._stream):
            outputs = self._step(model, batch)
        current.wait_stream(self._stream)
        return self._noted(outputs)

    def _captured(self, model: nn.Module, batch: Any) -> torch.cuda.CUDAGraph:
        """The graph of a step on buffers of its own. Capturing computes nothing."""
        refuse_listeners(self._runner)
        self._inputs = map_tensors(batch, torch.clone)
        graph = torch.cuda.CUDAGraph()
        # Other threads write checkpoints and pin memory, which has nothing to do with the capture.
        capture = torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local")
        with _told_in_one_line(), capture:
            self._outputs = self._step(model, self._inputs)
        self._runner.logger.info("hooks.optimizer: the training step is a CUDA graph from here on")
        return graph

    def _step(self, model: nn.Module, batch: Any) -> dict[str, Tensor]:
        """Forward, backward, clip and step; the outputs and the gradient's norm, detached."""
        wrapper, kind = self._runner.optim_wrapper, self._runner.device.type
        with _uncached_autocast(kind):
            outputs = self._train_step(model, batch)
        loss = loss_of(outputs)
        _refuse_all_but_scalars(outputs)
        with torch.autocast(kind, enabled=False), _capturable_warning_off():
            wrapper.backward(loss)
            grad_norm = wrapper.clip()
            wrapper.step()
        scalars = {key: value.detach() for key, value in outputs.items()}
        return scalars if grad_norm is None else {**scalars, _GRAD_NORM: grad_norm}

    def _noted(self, scalars: dict[str, Tensor]) -> dict[str, Any]:
        grad_norm = scalars.pop(_GRAD_NORM, None)
        if grad_norm is not None:
            self._runner.message_hub.update_scalar("train/grad_norm", grad_norm)
        return scalars


_GRAD_NORM = "hooks.optimizer.grad_norm"
"""Stands among a step's outputs for the gradient's norm; no task can return a key like it."""


@contextmanager
def _uncached_autocast(kind: str) -> Iterator[None]:
    """The autocast there is without its cache: a graph has to cast the weights at each replay."""
    dtype, enabled = torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind)
    with torch.autocast(kind, dtype=dtype, enabled=enabled, cache_enabled=False):
        yield


@contextmanager
def _capturable_warning_off() -> Iterator[None]:
    """torch warns of a capturable optimizer that steps uncaptured, as it does in the warm-up."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*capturable=True.*")
        yield


@contextmanager
def _told_in_one_line() -> Iterator[None]:
    """What cannot be captured, in place of what torch says when it ends such a capture."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        hidden = error.__context__
        reason = hidden if isinstance(hidden, RuntimeError) else error
        line = str(reason).strip().partition("\n")[0]
        raise refusal(
            f"this model and task cannot be captured ({line}): a step may not make the host wait "
            "for the device, as .item(), print and choosing by a mask do; have it do without, or "
            f"{USE_DEFAULT}"
        ) from reason


def _refuse_all_but_scalars(outputs: dict[str, Any]) -> None:
    for key, value in outputs.items():
        if not isinstance(value, Tensor) or value.numel() != 1:
            raise refusal(
                f"train_step returned {key!r} of type {type(value).__name__}; a graph can only "
                f"give tensors of one element: return one, leave it out, or {USE_DEFAULT}"
            )


def _shape_of(tensor: Tensor) -> Any:
    return tensor.shape, tensor.stride(), tensor.dtype


def _nothing() -> None:
    pass

"""How fast training is: samples, tokens and floating-point operations per second.

python -m hookexp hooks=+throughput
python -m hookexp hooks=+throughput/flops        # counts the operations of the first batch too
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from hookexp.errors import ConfigError
from hookexp.hook import Batch, Hook, Priority
from hookexp.numeric import is_number
from hookexp.runner import Runner

PEAK_TFLOPS = {
    "GB200": 2500.0,
    "B200": 2250.0,
    "GH200": 989.0,
    "H200": 989.0,
    "H100 PCIe": 756.0,
    "H100 NVL": 835.0,
    "H100": 989.0,
    "A100": 312.0,
    "L40S": 362.0,
    "L40": 181.0,
    "L4": 121.0,
}
"""By whole words of the GPU's name, as an RTX A1000 is no A100: dense bf16 and fp16, from the
vendor's data sheets."""


class ThroughputHook(Hook):
    """Time per iteration says little across batch sizes and models; these numbers compare.

    `train/samples_per_s` and, for text, `train/tokens_per_s` are of all ranks together, over the
    time since they were read last, without evaluations and checkpoints. They are computed when
    somebody logs them: at that moment the host has waited for the device anyway, so the time is
    the device's too.

    With FLOPs known, `train/tflops` is what a device does per second (10^12), and `train/mfu` the
    model FLOP utilisation, that number divided by the device's peak (Chowdhery et al. 2022,
    arXiv:2204.02311, appendix B).

    Args:
        tokens_per_sample: `auto` takes the length of the first tensor of a batch if it holds whole
            numbers in two dimensions (ids of tokens); or a number; null for no tokens.
        flops_per_sample: forward and backward; `count` counts those of the first batch while it is
            trained on, in the operations that torch.utils.flop_counter knows (matrix products,
            convolutions, attention; recomputed activations count, so give a number if there are
            any); null for none.
        peak_tflops: of one device, at the run's precision; `auto` knows some GPUs at bf16 and
            fp16, and logs no mfu elsewhere.

    Raises:
        ValueError: for a number that is not above 0.
        ConfigError: for flops_per_sample=count with a compiled model.
    """

    priority = Priority.NORMAL
    after = ("optimizer",)

    def __init__(
        self,
        tokens_per_sample: str | int | None = "auto",
        flops_per_sample: str | float | None = None,
        peak_tflops: str | float = "auto",
    ) -> None:
        _require("tokens_per_sample", tokens_per_sample, ("auto", None))
        _require("flops_per_sample", flops_per_sample, ("count", None))
        _require("peak_tflops", peak_tflops, ("auto",))
        self.tokens_per_sample = tokens_per_sample
        self.flops_per_sample = flops_per_sample
        self.peak_tflops = peak_tflops
        self._counter: FlopCounterMode | None = None
        self._samples = self._tokens = 0
        self._began = 0.0
        self._paused_at: float | None = None
        self._rates = (0.0, 0.0)

    def before_run(self, runner: Runner) -> None:
        if self.flops_per_sample == "count" and runner.settings.compile:
            raise ConfigError(
                "hooks.throughput.flops_per_sample=count: operations cannot be counted in a "
                "compiled model; run once with trainer.compile=false and give the number it logs"
            )

    def before_train(self, runner: Runner) -> None:
        self._samples = self._tokens = 0
        self._began = perf_counter()
        hub = runner.message_hub
        hub.set_gauge("train/samples_per_s", lambda: self._read(runner)[0])
        if self.flops_per_sample not in (None, "count"):
            self._set_flop_gauges(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        if self._paused_at is not None:
            self._began += runner.clock.began - self._paused_at
            self._paused_at = None
        if self.flops_per_sample == "count":
            self._counter = FlopCounterMode(display=False)
            self._counter.__enter__()  # type: ignore[no-untyped-call]

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        counter = self._leave_counter()
        first = _first_tensor(data_batch)
        if first is None or first.dim() == 0:
            if counter is not None:
                self._give_up_counting(runner, data_batch)
            return
        self._samples += len(first)
        if counter is not None:
            self._note_flops(runner, counter.get_total_flops() / len(first))
        tokens = self._tokens_in(first)
        if tokens and "train/tokens_per_s" not in runner.message_hub.gauges:
            runner.message_hub.set_gauge("train/tokens_per_s", lambda: self._read(runner)[1])
        self._tokens += tokens

    def before_val(self, runner: Runner) -> None:
        self._pause()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        self._pause()

    def after_run(self, runner: Runner) -> None:
        self._leave_counter()

    def _pause(self) -> None:
        """The time until the next batch is asked for is not training."""
        if self._paused_at is None:
            self._paused_at = perf_counter()

    def _read(self, runner: Runner) -> tuple[float, float]:
        """Samples and tokens per second since the last reading that found new ones."""
        if self._samples:
            now = perf_counter() if self._paused_at is None else self._paused_at
            per_second = runner.world_size / (now - self._began)
            self._rates = (self._samples * per_second, self._tokens * per_second)
            self._samples = self._tokens = 0
            self._began = now
        return self._rates

    def _tokens_in(self, first: Tensor) -> int:
        if self.tokens_per_sample == "auto":
            return first.numel() if first.dim() == 2 and _holds_whole_numbers(first) else 0
        return 0 if self.tokens_per_sample is None else len(first) * int(self.tokens_per_sample)

    def _note_flops(self, runner: Runner, flops_per_sample: float) -> None:
        self.flops_per_sample = flops_per_sample
        runner.logger.info(
            "throughput: hooks.throughput.flops_per_sample=%.6g, as counted", flops_per_sample
        )
        self._set_flop_gauges(runner)

    def _give_up_counting(self, runner: Runner, data_batch: Batch) -> None:
        self.flops_per_sample = None
        runner.logger.warning(
            "hooks.throughput.flops_per_sample=count: a batch of type %s has no tensor to tell how "
            "many samples it holds, so nothing is counted; batches are tensors, or lists, tuples "
            "and dicts of them",
            type(data_batch).__name__,
        )

    def _leave_counter(self) -> FlopCounterMode | None:
        counter, self._counter = self._counter, None
        if counter is not None:
            counter.__exit__(None, None, None)  # type: ignore[no-untyped-call]
        return counter

    def _set_flop_gauges(self, runner: Runner) -> None:
        tera_per_sample = float(self.flops_per_sample or 0.0) / 1e12 / runner.world_size

        def tflops() -> float:
            return self._read(runner)[0] * tera_per_sample

        runner.message_hub.set_gauge("train/tflops", tflops)
        peak = _peak_tflops(runner) if isinstance(self.peak_tflops, str) else self.peak_tflops
        if peak is not None:
            runner.message_hub.set_gauge("train/mfu", lambda: tflops() / peak)


def _peak_tflops(runner: Runner) -> float | None:
    """Of a GPU that is known, at half precision."""
    if runner.device.type != "cuda" or runner.settings.precision == "fp32":
        return None
    name = torch.cuda.get_device_name(runner.device)
    known = (peak for words, peak in PEAK_TFLOPS.items() if re.search(rf"\b{words}\b", name))
    return next(known, None)


def _first_tensor(batch: Any) -> Tensor | None:
    if isinstance(batch, Tensor):
        return batch
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if not isinstance(batch, (Mapping, list, tuple)):
        return None
    return next((t for t in map(_first_tensor, parts) if t is not None), None)


def _holds_whole_numbers(tensor: Tensor) -> bool:
    return not tensor.is_floating_point() and not tensor.is_complex()


def _require(name: str, value: Any, words: tuple[Any, ...]) -> None:
    if value in words or (is_number(value) and value > 0):
        return
    named = ", ".join("null" if word is None else word for word in words)
    raise ValueError(f"{name}={value}: use a number above 0, or {named}")

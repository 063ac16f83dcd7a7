"""How much memory a run takes, and what to try when there is not enough.

python -m hookexp hooks=+memory
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch

from hookexp.errors import add_note
from hookexp.failures import is_out_of_memory
from hookexp.hook import Hook, Priority
from hookexp.numeric import require_whole
from hookexp.runner import Runner

MIB = 2**20
SNAPSHOT_FILE = "oom_snapshot.pickle"
STATM_FILE = Path("/proc/self/statm")


class MemoryHook(Hook):
    """Peaks tell how far a batch can still grow; a snapshot tells who took the memory.

    After each epoch a line says the peak on the GPU (of tensors, and of what PyTorch has reserved)
    and what the process holds of the host's memory, in MiB; in the hub it is `memory/gpu_peak`,
    `memory/gpu_reserved` and `memory/host`. Rows of the log get `memory_host`. Since the peak
    begins anew with each epoch, so does the `memory` of iter_timer.

    When memory runs out, the error says what to try; on a GPU a file `oom_snapshot.pickle` in the
    run's folder holds all allocations with the lines of code that made them, to be looked at with
    https://pytorch.org/memory_viz.

    Args:
        snapshot: whether to keep track of allocations for that file, some microseconds for each.
        max_entries: how many of the last allocations and releases the file shows.

    Raises:
        ValueError: for max_entries below 1.
    """

    priority = Priority.NORMAL

    def __init__(self, snapshot: bool = True, max_entries: int = 100_000) -> None:
        require_whole("max_entries", max_entries)
        self.snapshot = snapshot
        self.max_entries = max_entries
        self._is_recording = False

    def before_run(self, runner: Runner) -> None:
        runner.message_hub.set_gauge("train/memory_host", host_mib)
        if self.snapshot and runner.device.type == "cuda":
            torch.cuda.memory._record_memory_history(max_entries=self.max_entries)
            self._is_recording = True

    def before_train_epoch(self, runner: Runner) -> None:
        if runner.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(runner.device)

    def after_train_epoch(self, runner: Runner) -> None:
        peaks = {"host": host_mib()}
        if runner.device.type == "cuda":
            peaks["gpu_peak"] = torch.cuda.max_memory_allocated(runner.device) / MIB
            peaks["gpu_reserved"] = torch.cuda.max_memory_reserved(runner.device) / MIB
        runner.message_hub.update_scalars({f"memory/{k}": v for k, v in peaks.items()})
        numbers = ", ".join(
            f"{name.replace('_', ' ')} {mib:.0f} MiB" for name, mib in peaks.items()
        )
        runner.logger.info("memory in epoch %d: %s", runner.epoch + 1, numbers)

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        if not is_out_of_memory(error):
            return
        note = (
            "memory has run out; what helps, the cheapest first: trainer.precision=bf16; a smaller "
            "data.batch_size, with hooks/optimizer=accumulate for the same steps; activation "
            "checkpointing in the model; a smaller model"
        )
        if self._is_recording:
            path = runner.work_dir / SNAPSHOT_FILE
            torch.cuda.memory._dump_snapshot(str(path))  # type: ignore[no-untyped-call]
            note += f"\nwho took it: {path}, to be opened at https://pytorch.org/memory_viz"
        add_note(error, note)
        runner.logger.error(note)

    def after_run(self, runner: Runner) -> None:
        if self._is_recording:
            torch.cuda.memory._record_memory_history(enabled=None)
            self._is_recording = False


def host_mib() -> float:
    """What this process holds of the host's memory now; where nobody knows, the most it has."""
    try:
        pages = int(STATM_FILE.read_text(encoding="ascii").split()[1])
        return pages * os.sysconf("SC_PAGE_SIZE") / MIB
    except OSError:
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB

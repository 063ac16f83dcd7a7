"""What the machine does to a run, said in one message: what happened, and what to try.

Such an error is nobody's bug, and a page of traceback would hide what to change. The log file has
the traceback.
"""

from __future__ import annotations

import errno
import re
import traceback
from typing import TYPE_CHECKING

import torch
from torch.multiprocessing import reductions

from hookexp import dist
from hookexp.errors import ConfigError, add_note
from hookexp.optim.states import config_path
from hookexp.state import Phase

if TYPE_CHECKING:
    from hookexp.runner import Runner

_OF_MEMORY = re.compile(
    r"DefaultCPUAllocator|not enough memory|can(?:'t|not) allocate memory", re.I
)
_DEAD_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? ([\d, ]+)\) (.+)")
_TIMED_OUT = re.compile(r"DataLoader timed out after ([\d.]+) seconds")
_FUSED_AND_SPARSE = re.compile(r"_fused_\w+` does not support sparse gradients")
_NOT_DETERMINISTIC = "does not have a deterministic implementation"
_NO_GRADIENT = re.compile(
    r"parameters that were not used in producing loss.*for rank \d+: ([\d ]+)", re.S
)
_PART_OF_WRAPPED = re.compile(r"'DistributedDataParallel' object has no attribute '(\w+)'")
_WORKERS_ERROR = re.compile(r"Caught (\w+) in DataLoader worker process (\d+)")
_LOST_RANK = re.compile(r"gloo/transport/tcp|remote process exited")
_MISTAKE = re.compile(rf"^{ConfigError.__module__}\.{ConfigError.__name__}: (.+)", re.M | re.S)


def in_plain_words(error: BaseException, runner: Runner) -> ConfigError | None:
    """The message for an error of the machine, or one that a worker has made; None for any other.

    An exception of the data set in a worker process, one of an operation that a deterministic run
    or a fused step may not use, and a part of the model that is out of reach stay what they are and
    gain a note.
    """
    text = _text_of(error)
    if is_out_of_memory(error):
        return ConfigError(
            f"out of memory {_where(runner)} ({_first_sentence(text) or type(error).__name__}). "
            "Try a smaller data.batch_size; hooks/optimizer=accumulate keeps the batch of a step; "
            f"trainer.precision=bf16 halves what a forward pass keeps. {_what_is_left(runner)}"
        )
    if _LOST_RANK.search(text):
        return ConfigError(
            f"another rank has ended, {_where(runner)}: what it said itself, or its exit code "
            f"below, tells why ({_first_sentence(text)}). {_what_is_left(runner)}"
        )
    late = _TIMED_OUT.search(text)
    if late:
        return ConfigError(
            f"the data loader gave no batch within its timeout of {late[1]} seconds, "
            f"{_where(runner)}. A worker hangs, or is slower than that: try a larger timeout; "
            f"data.num_workers=0 shows where the data set hangs. {_what_is_left(runner)}"
        )
    dead = _DEAD_WORKER.search(text)
    if dead or _is_of_half_a_batch(error):
        what = f"(process {dead[1]}) {dead[2].rstrip('. ')}" if dead else "ended within a batch"
        return ConfigError(
            f"a worker of the data loader {what}, {_where(runner)}. Often memory ran out, in RAM "
            "or in /dev/shm: try fewer data.num_workers or a smaller data.batch_size; "
            f"data.num_workers=0 shows a crash of the data set itself. {_what_is_left(runner)}"
        )
    unused = _NO_GRADIENT.search(text)
    if unused:
        return ConfigError(
            f"the loss did not depend on {_parameters(runner, unused[1].split())}, and the ranks "
            "wait for gradients of all that learns. If the model leaves parts out on purpose: "
            "+trainer.ddp.find_unused_parameters=true"
        )
    caught = _WORKERS_ERROR.search(text)
    mistake = _MISTAKE.search(text) if caught else None
    if mistake:
        return ConfigError(mistake[1].strip())
    if caught:
        add_note(
            error,
            f"{caught[1]} in worker {caught[2]} of the data loader, {_where(runner)}; "
            "data.num_workers=0 runs the data set in this process, where a debugger reaches it",
        )
    if _FUSED_AND_SPARSE.search(text):
        paths = map(config_path, runner.optim_wrapper.optimizers)
        add_note(
            error,
            "a fused step takes no sparse gradients, such as those of Embedding(sparse=True): "
            f"{' '.join(f'{p}.fused=false {p}.weight_decay=0' for p in paths)}, or sparse=False",
        )
    part = _PART_OF_WRAPPED.search(text)
    if part:
        add_note(
            error,
            f"on several ranks the model is wrapped, and model.{part[1]} is out of reach: only the "
            "gradients of what is computed by model(...) become the same on all. Let the model's "
            "forward call its parts, each by an argument; what is only read is in "
            f"model.module.{part[1]}",
        )
    if _NOT_DETERMINISTIC in text:
        add_note(
            error,
            f"trainer.deterministic=true allows no such operation on {runner.device}: use another "
            "one, or trainer.deterministic=false",
        )
    return None


def as_a_failure(error: SystemExit, runner: Runner) -> ConfigError:
    """The message for `sys.exit()` in the midst of a run, which would look like its end."""
    hooks = [note for note in getattr(error, "__notes__", []) if note.startswith("in hook ")]
    where = ", ".join(hooks) or _where(runner)
    return ConfigError(
        f"sys.exit({'' if error.code is None else error.code}) was called {where}: the run is not "
        f'finished. To end one well call runner.state.stop("why"). {_what_is_left(runner)}'
    )


def is_out_of_memory(error: BaseException) -> bool:
    """Whether memory has run out: the GPU's, or the host's, for which torch has no error type.

    Beginning a process, such as a worker of a loader, ends with an OSError then.
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return isinstance(error, RuntimeError) and bool(_OF_MEMORY.search(str(error)))


def _is_of_half_a_batch(error: BaseException) -> bool:
    """Whether a worker was gone before the tensors of its last batch had been taken over."""
    if not isinstance(error, (ConnectionError, EOFError, FileNotFoundError)):
        return False
    frames = traceback.extract_tb(error.__traceback__)
    return any(frame.filename == reductions.__file__ for frame in frames)


def _text_of(error: BaseException) -> str:
    """An error's text, and its cause's before it: torch names a worker's signal there."""
    cause = error.__cause__ or error.__context__
    known = str(cause) if cause is not None and _DEAD_WORKER.search(str(cause)) else ""
    return f"{known}\n{error}".strip()


def _parameters(runner: Runner, indices: list[str]) -> str:
    """The names of parameters that DistributedDataParallel knows by number."""
    model = dist.unwrap(runner.model)
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    unused = [names[int(index)] for index in indices]
    more = f" and {len(unused) - 3} more" if len(unused) > 3 else ""
    return ", ".join(unused[:3]) + more


def _first_sentence(text: str) -> str:
    line = text.splitlines()[0] if text else ""
    return re.split(r"(?<=[a-zA-Z])\. ", re.sub(r"^\[enforce fail.*?\] .*?\. ", "", line))[0]


def _where(runner: Runner) -> str:
    state = runner.state
    if runner.mode != "train":
        return f"on {runner.device} in mode={runner.mode}"
    if state.phase is Phase.VALIDATE:
        finished = f"epoch {state.epoch}" if runner.by_epoch else f"iteration {state.iter}"
        return f"on {runner.device} in the validation after {finished}"
    return f"on {runner.device} in epoch {state.epoch + 1}, iteration {state.iter + 1}"


def _what_is_left(runner: Runner) -> str:
    try:
        newest = runner.writer.store.newest()
    except ConfigError as error:
        return str(error)
    if newest is None:
        return "Nothing was saved yet"
    return f"The last checkpoint is {newest.name}: resume=auto continues from it"

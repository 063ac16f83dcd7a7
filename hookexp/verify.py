"""`mode=verify_resume`: shows that a run of the user's own model and hooks resumes exactly.

    whole     trains 2n iterations and saves after n of them
    resumed   continues from that checkpoint to 2n

Both end with the same weights, states, generators and log rows, bit for bit; or the first thing
that differs is named, with what is likely to be the cause.
"""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from hookexp import dist
from hookexp.build import build_hooks, build_runner
from hookexp.checkpoint.host_copy import HostCopy
from hookexp.checkpoint.snapshot import collect, collect_of_hooks
from hookexp.compose.isolation import forget_compiled_code
from hookexp.differences import first_difference
from hookexp.errors import ConfigError
from hookexp.hook import Batch, Hook, Priority
from hookexp.runner import Runner
from hookexp.state import SaveRequest

_FILE = "verify.pth"
_LOG = "scalars.jsonl"
_CLOCK = ("time", "data_time")
_LIKELY = {
    "state_dict": "the forward pass or the optimizer depends on something that is not saved: "
    "randomness from a generator of its own, a cache, the clock",
    "ema_state_dict": "the hook that averages weights does not save all of its state",
    "beside": "the task, a loss or a module keeps something that is not saved: an object that is "
    "more than values and has no state_dict, a long list that is changed in place",
    "sampler": "a hook changes what the loader counts batches by",
    "stream": "the object that gives batches does not say all of where it stands",
    "optimizer": "an optimizer keeps values outside of its state_dict",
    "param_schedulers": "a scheduler's state_dict leaves something out",
    "frozen": "a hook freezes parameters, or lets them learn, by something that is not saved",
    "loop": "a hook stops the run or changes its counters by something that is not saved",
    "objective": "the validation depends on something that is not saved",
    "hooks": "this hook's state_dict leaves something out, or it has none",
    "rng": "something draws random numbers more or less often after a resume, such as a data set "
    "that draws in its constructor, or a hook in before_train",
    "log": "what is logged depends on something that is not saved",
}

logger = logging.getLogger("hookexp")


def verify_resume(cfg: DictConfig, work_dir: Path) -> None:
    """Train, save and resume as `trainer.verify_iters` says, in two folders below `work_dir`.

    Raises:
        ConfigError: if the two runs differ; it names where they do first, and why that may be.
        SystemExit: with the code of a signal that came.
    """
    iters = int(cfg.trainer.verify_iters)
    if iters < 1:
        raise ConfigError(f"trainer.verify_iters={iters}: use a whole number, 1 or more")
    dist.init()
    work_dir = Path(dist.broadcast(str(work_dir)))
    whole = _train(cfg, work_dir / "whole", iters, resume=None)
    checkpoint = work_dir / "whole" / _FILE
    resumed = _train(cfg, work_dir / "resumed", iters, resume=checkpoint)
    difference = _of_any_rank(first_difference(whole, resumed))
    if difference is None:
        logger.info(
            "verified: a run resumed after %d of %d iterations is the run that was not stopped, "
            "bit for bit (weights, optimizer, hooks, generators, log)",
            *(iters, whole["loop"]["iter"]),
        )
        return
    again = _train(cfg, work_dir / "again", iters, resume=None)
    if _of_any_rank(first_difference(whole, again)) is not None:
        raise ConfigError(
            f"not verified: two runs from the same start differ already ({difference}); "
            "try trainer.deterministic=true, and look for what goes on from run to run in one "
            "process: a global variable, an attribute of a class, a cache"
        )
    part = re.split(r"[.:\[]", difference, maxsplit=1)[0]
    raise ConfigError(
        f"not verified: after a resume {difference}. Likely: {_LIKELY.get(part, 'unknown')}"
        f"{_compiled(cfg)}{_hooks_without_state(cfg)}"
    )


def _of_any_rank(difference: str | None) -> str | None:
    """The first difference that a rank has found, so that all go the same way."""
    return next((found for found in dist.gather(difference) if found is not None), None)


def _compiled(cfg: DictConfig) -> str:
    """A clause on code that is compiled for the shapes of a process."""
    if not cfg.trainer.compile or cfg.trainer.deterministic:
        return ""
    return "; or trainer.compile, which trainer.deterministic=true makes exact"


def _hooks_without_state(cfg: DictConfig) -> str:
    """A clause that names the hooks of the user's own that save nothing."""
    names = [
        entry.name
        for entry in build_hooks(cfg).entries
        if not type(entry.hook).__module__.startswith("hookexp.")
        and not hasattr(entry.hook, "state_dict")
    ]
    if not names:
        return ""
    return f"; or what a hook counts or keeps: {', '.join(names)} has no state_dict"


class _SaveAndStop(Hook):
    """Saves after n iterations and stops after 2n."""

    priority = Priority.LOWEST

    def __init__(self, iters: int) -> None:
        self.iters = iters

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        if runner.iter + 1 == self.iters:
            runner.state.request_save(SaveRequest(_FILE, points_last=False))
        if runner.iter + 1 >= 2 * self.iters:
            runner.state.stop("verify_resume has seen enough", urgent=True)


def _train(cfg: DictConfig, folder: Path, iters: int, resume: Path | None) -> dict[str, Any]:
    """The state a run has after 2n iterations, and what it logged after n."""
    forget_compiled_code()
    folder.mkdir(parents=True, exist_ok=True)
    if dist.rank() == 0:  # Of a verification before this one, whose rows are not of this run.
        (folder / _LOG).unlink(missing_ok=True)
    cfg = cfg.copy()
    OmegaConf.set_struct(cfg, False)
    cfg.mode, cfg.load_from, cfg.resume = "train", None, None if resume is None else str(resume)
    cfg.sinks = {"jsonl": {"_target_": "hookexp.sinks.jsonl.JsonlSink"}}
    runner = build_runner(cfg, folder)
    if runner.max_iters is not None and runner.max_iters <= iters:
        fewer = f", or set trainer.verify_iters={runner.max_iters // 2}"
        raise ConfigError(
            f"mode=verify_resume: resumes after {iters} iterations, and this run has "
            f"{runner.max_iters}; make it longer{fewer if runner.max_iters > 1 else ''}"
        )
    runner.hooks.register(_SaveAndStop(iters), "verify_resume")
    summary = runner.run("train")
    if summary.exit_code:
        raise SystemExit(summary.exit_code)
    request = SaveRequest(_FILE)
    state = collect(runner, request)
    collect_of_hooks(runner, request, state)
    for of_clock_or_disk in ("meta", "message_hub"):
        del state[of_clock_or_disk]
    # What a hook freezes or sets when training begins may depend on where it begins.
    for start in ("at_start", "modules_at_start"):
        del state["frozen"][start]
    del state["optimizer"]["at_start"]
    # Which files are kept differs by intent: the resumed run has a folder of its own.
    state["hooks"].pop("checkpoint", None)
    # What is measured when it is logged (speed, memory, ...) is of the machine, not of the run.
    measured = {key.rpartition("/")[2] for key in runner.message_hub.gauges}
    rows = _rows_after(folder / _LOG, iters, {*_CLOCK, *measured}) if runner.rank == 0 else []
    return {**HostCopy().copy(state), "log": rows}


def _rows_after(log: Path, step: int, left_out: set[str]) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return [
        {key: value for key, value in row.items() if key not in left_out}
        for row in rows
        if row["step"] > step
    ]

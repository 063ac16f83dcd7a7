"""The command line: `python -m hookexp` and the console script `hookexp`.

Hydra composes a config, `build` makes a run of it, the run returns its objective. Everything
above a run is here and in `compose/`; torch is imported when the first run is built.
"""

from __future__ import annotations

import logging
import signal
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from hookexp.compose import boundary, sweep_table
from hookexp.compose.command_line import CommandLine
from hookexp.compose.completion import prepare
from hookexp.compose.conf_dir import conf_dir
from hookexp.compose.folders import FolderInUse, refuse_used
from hookexp.compose.isolation import restored_process_state
from hookexp.compose.lock import locked
from hookexp.compose.lr_find import for_lr_find
from hookexp.compose.modes import check_mode
from hookexp.compose.named_sets import SetSearchPath, check_taken_away
from hookexp.compose.register import register
from hookexp.compose.secrets import save_config
from hookexp.compose.typed import drop_keys_of_the_old_target
from hookexp.log import FILE_ONLY

register()


def main() -> None:
    """Run what the command line says; leaves with 0, 1 for an error, 130 or 143 for a signal."""
    overrides: Sequence[str] = ()
    for name in ("SIGTERM", "SIGUSR1"):
        # Outside of a run there is nothing to save; inside, the run has handlers of its own.
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), _leave)
    with boundary.hydra_raises():
        try:
            line = CommandLine.parse(sys.argv[1:])
            overrides = line.overrides
            SetSearchPath.config_dir = line.config_dir
            prepare(overrides)
            with _importable(Path.cwd(), line.config_dir):
                _run_hydra()
            sys.stdout.flush()
        except BrokenPipeError:
            boundary.silence_stdout()
        except KeyboardInterrupt:
            print("hookexp: interrupted", file=sys.stderr)
            raise SystemExit(130) from None
        except Exception as error:
            if not isinstance(error, _Reported):
                boundary.report(error, overrides)
            raise SystemExit(1) from None


def _run_hydra() -> None:
    try:
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="config")(run_job)()
    finally:
        sweep_table.end()


def run_job(cfg: DictConfig) -> float | None:
    """One run, alone or as a job of a sweep; returns its objective, for sweepers to optimise."""
    config = HydraConfig.get()
    work_dir = Path(config.runtime.output_dir)
    began = time.monotonic()
    try:
        with restored_process_state(), _warnings_logged(), _importable(*_user_folders()):
            return _run(cfg, work_dir)
    except Exception as error:
        _tell(error, work_dir, time.monotonic() - began)
        if config.mode == RunMode.MULTIRUN:
            raise _Reported(str(error)) from error  # The sweeper has to know that the job failed.
        raise SystemExit(1) from None


def _leave(number: int, frame: FrameType | None) -> None:
    print(f"hookexp: stopped by {signal.Signals(number).name}", file=sys.stderr)
    raise SystemExit(143)


class _Reported(Exception):
    """An error that the user has been shown."""


def _run(cfg: DictConfig, work_dir: Path) -> float | None:
    check_mode(cfg.mode)
    refuse_used(work_dir, cfg)
    check_taken_away(cfg, HydraConfig.get().runtime.choices)
    with locked(work_dir):
        save_config(cfg, work_dir)
        from hookexp import dist
        from hookexp.build import build_runner
        from hookexp.verify import verify_resume

        drop_keys_of_the_old_target(cfg, [str(w) for w in HydraConfig.get().overrides.task])
        try:
            if cfg.mode == "verify_resume":
                verify_resume(cfg, work_dir)
                return None
            cfg = for_lr_find(cfg) if cfg.mode == "lr_find" else cfg
            summary = build_runner(cfg, work_dir=work_dir).run(cfg.mode)
        finally:
            dist.close()
    if summary.exit_code:
        raise SystemExit(summary.exit_code)
    return summary.objective_value


def _tell(error: Exception, work_dir: Path, seconds: float) -> None:
    """Report an error on the terminal, whole in the log file, in one line in summary.json."""
    config = HydraConfig.get()
    overrides = [str(override) for override in config.overrides.task]
    who = "hookexp"
    if config.mode == RunMode.MULTIRUN:
        who = f"run {config.job.num} ({' '.join(overrides)}) failed"
    logging.getLogger("hookexp").error(boundary.full_traceback(error), extra=FILE_ONLY)
    line = boundary.report(error, overrides, who)
    if not isinstance(error, FolderInUse):
        sweep_table.write_failure(work_dir, line, seconds)


def _user_folders() -> list[Path]:
    """Where a user's modules are: the current folder and those of configs beside ours."""
    runtime = HydraConfig.get().runtime
    sources = [s for s in runtime.config_sources if s.provider == "command-line"]
    return [Path(runtime.cwd), *(Path(source.path) for source in sources)]


@contextmanager
def _warnings_logged() -> Iterator[None]:
    """Python's warnings go to the log file too, and do not tear a live display."""
    logging.captureWarnings(True)
    try:
        yield
    finally:
        logging.captureWarnings(False)


@contextmanager
def _importable(*folders: Path | None) -> Iterator[None]:
    """Put folders at the head of the import path."""
    before = list(sys.path)
    added = [str(folder.absolute()) for folder in folders if folder is not None]
    sys.path[:0] = [folder for folder in added if folder not in before]
    try:
        yield
    finally:
        sys.path[:] = before

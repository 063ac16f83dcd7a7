"""The command line: `python -m hookexp` and the console script `hookexp`.

Hydra composes a config, `build` makes a run of it, the run returns its objective. Everything
above a run is here and in `compose/`; torch is imported when the first run is built.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from hookexp.compose import boundary, sweep_table
from hookexp.compose.checks import check_config
from hookexp.compose.command_line import CommandLine
from hookexp.compose.completion import prepare
from hookexp.compose.conf_dir import VERSION_BASE, conf_dir
from hookexp.compose.finished import tell_finished
from hookexp.compose.folders import FolderInUse, refuse_used, unwritable
from hookexp.compose.help_text import versions
from hookexp.compose.isolation import restored_process_state
from hookexp.compose.lock import locked
from hookexp.compose.lr_find import for_lr_find, with_the_finder
from hookexp.compose.modes import check_mode
from hookexp.compose.named_sets import SetSearchPath, check_taken_away
from hookexp.compose.old_keys import drop_keys_of_old_targets
from hookexp.compose.register import register
from hookexp.compose.secrets import masked_words, save_config, save_words
from hookexp.compose.startup import collector_paused, resume_collector
from hookexp.compose.streams import make_sturdy
from hookexp.compose.sweep_jobs import write_status
from hookexp.log import FILE_ONLY
from hookexp.signals import leave_if_asked, leave_quietly

if TYPE_CHECKING:
    from hookexp.summary import Summary

register()


def main() -> None:
    """Run what the command line says; leaves with 0, 1 for an error, 130 or 143 for a signal."""
    overrides: Sequence[str] = ()
    make_sturdy()
    with leave_quietly(), collector_paused(), boundary.hydra_raises():
        try:
            sys.argv[1:] = with_the_finder(sys.argv[1:])
            line = CommandLine.parse(sys.argv[1:])
            overrides = line.overrides
            sys.argv[1:] = [*overrides, *line.flags]  # Hydra takes no flag between two words.
            if "--version" in sys.argv[1:]:
                print(versions())
                return
            SetSearchPath.config_dir = line.config_dir
            prepare(overrides)
            with _importable(Path.cwd(), line.config_dir):
                _run_hydra()
            sys.stdout.flush()
        except Exception as error:
            if not isinstance(error, boundary.Reported):
                boundary.report(error, overrides)
            raise SystemExit(1) from None


def _run_hydra() -> None:
    try:
        hydra.main(str(conf_dir()), "config", **VERSION_BASE)(run_job)()
    except OSError as error:
        if told := sweep_table.unwritable_folder(error):
            raise told from error
        raise
    finally:
        sweep_table.end()


def run_job(cfg: DictConfig) -> float | None:
    """One run, alone or as a job of a sweep; returns its objective, for sweepers to optimise."""
    leave_if_asked()
    config = HydraConfig.get()
    work_dir = Path(config.runtime.output_dir)
    began = time.monotonic()
    try:
        if config.mode == RunMode.MULTIRUN:  # A single run is checked before it has a folder.
            _check_job(cfg, work_dir)
        with (
            restored_process_state(),
            _warnings_logged(),
            _importable(*_user_folders()),
            _command_line_masked(),
        ):
            return _run(cfg, work_dir)
    except Exception as error:
        _tell(error, work_dir, cfg.mode, time.monotonic() - began)
        if config.mode == RunMode.MULTIRUN:
            # The sweeper has to know that the job failed.
            raise boundary.Reported(str(error)) from error
        raise SystemExit(1) from None


def _run(cfg: DictConfig, work_dir: Path) -> float | None:
    check_mode(cfg.mode)
    refuse_used(work_dir, cfg)
    check_taken_away(cfg, HydraConfig.get().runtime.choices)
    with locked(work_dir):
        from hookexp import dist
        from hookexp.build import summary_of_finished_run

        try:
            summary = summary_of_finished_run(cfg, work_dir)
            if summary is None:
                summary = _save_and_run(cfg, work_dir)
            elif dist.rank() == 0:
                tell_finished(summary, cfg, work_dir)
                if HydraConfig.get().mode == RunMode.MULTIRUN:
                    with suppress(OSError):
                        save_words(work_dir / ".hydra")  # The sweep's table reads it.
        finally:
            dist.close()
    if summary is None:
        return None
    if summary.exit_code:
        raise SystemExit(summary.exit_code)
    return summary.objective_value


def _save_and_run(cfg: DictConfig, work_dir: Path) -> Summary | None:
    from hookexp.build import build_runner
    from hookexp.verify import verify_resume

    try:
        save_config(cfg, work_dir)
    except OSError as error:
        raise unwritable("hydra.run.dir", work_dir, error) from error
    drop_keys_of_old_targets(cfg, [str(w) for w in HydraConfig.get().overrides.task])
    if cfg.mode == "verify_resume":
        resume_collector()
        began = time.monotonic()
        verify_resume(cfg, work_dir)
        status = {"status": "verified", "seconds": time.monotonic() - began}
        write_status(work_dir, cfg.mode, status)
        return None
    cfg = for_lr_find(cfg) if cfg.mode == "lr_find" else cfg
    runner = build_runner(cfg, work_dir=work_dir)
    resume_collector()
    return runner.run(cfg.mode)


def _check_job(cfg: DictConfig, work_dir: Path) -> None:
    config = HydraConfig.get()
    try:
        check_config(cfg, config.overrides.task, config.runtime.choices)
    except Exception:
        refuse_used(work_dir, cfg)
        with locked(work_dir), suppress(OSError):
            save_config(cfg, work_dir)  # The sweep's table reads it.
        raise


def _tell(error: Exception, work_dir: Path, mode: str, seconds: float) -> None:
    """Report an error on the terminal, whole in the log file, in one line in summary.json."""
    config = HydraConfig.get()
    overrides = [str(override) for override in config.overrides.task]
    who = "hookexp"
    if config.mode == RunMode.MULTIRUN:
        who = f"run {config.job.num} ({' '.join(map(masked_words, overrides))}) failed"
    logging.getLogger("hookexp").error(boundary.full_traceback(error), extra=FILE_ONLY)
    line = boundary.report(error, overrides, who)
    if not isinstance(error, FolderInUse):
        sweep_table.write_failure(work_dir, mode, line, seconds)


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
def _command_line_masked() -> Iterator[None]:
    """Secrets are not in the words of the process either, which W&B saves and uploads."""
    before = list(sys.argv)
    sys.argv[1:] = [masked_words(word) for word in before[1:]]
    try:
        yield
    finally:
        sys.argv[:] = before


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

"""What happens between Hydra's composing a config and its making a folder for it."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig, read_write

from hookexp.compose import sweep_table
from hookexp.compose.boundary import Reported, leaves_on_error
from hookexp.compose.checks import check_config, check_name
from hookexp.compose.explain import explain
from hookexp.compose.folders import (
    claim_run_folder,
    claim_sweep_folder,
    is_one_of_several,
    is_other_rank,
)
from hookexp.compose.lock import lock
from hookexp.compose.modes import check_mode
from hookexp.compose.old_keys import drop_keys_of_old_targets
from hookexp.errors import ConfigError


class RunCallback(Callback):
    """Checks the mode, claims the folder, and answers `mode=explain` before there is one.

    Hydra turns an exception of a callback into a warning and goes on, so errors leave here as
    SystemExit.
    """

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        with leaves_on_error(config):
            check_mode(config.mode)
            try:
                check_config(config, config.hydra.overrides.task, config.hydra.runtime.choices)
            except Exception:
                # The message looks up files in it. Not before: it makes the config read-only.
                HydraConfig.instance().set_config(config)
                raise
            if config.mode == "explain":
                HydraConfig.instance().set_config(config)
                drop_keys_of_old_targets(config, config.hydra.overrides.task)
                print(explain(config))
                raise SystemExit(0)
            if is_other_rank():
                # The first process claims the folder, and `build` tells the others which.
                with read_write(config.hydra):
                    config.hydra.run.dir = tempfile.mkdtemp(prefix="hookexp-")
                return
            claim_run_folder(config)
            lock(Path(str(config.hydra.run.dir)))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        with leaves_on_error(config):
            check_mode(config.mode)
            if config.mode == "explain":
                raise ConfigError("mode=explain explains one run; leave -m out")
            if is_one_of_several():
                raise ConfigError(
                    "-m: torchrun starts the ranks of one run, and a sweep has several runs; leave "
                    "-m out and start torchrun once for each"
                )
            check_name(config)
            claim_sweep_folder(config)
            sweep_table.begin(config)

    def on_job_start(self, config: DictConfig, **kwargs: Any) -> None:
        if config.hydra.mode == RunMode.MULTIRUN:
            sweep_table.hide_secrets()

    def on_job_end(self, config: DictConfig, job_return: JobReturn, **kwargs: Any) -> None:
        failed = job_return.status is JobStatus.FAILED
        if failed and isinstance(job_return._return_value, Reported):
            job_return.__class__ = _ReportedReturn


class _ReportedReturn(JobReturn):
    """Of a job that failed and has told so; Hydra's own class would print two lines more."""

    @property  # type: ignore[misc]  # Nobody sets the value of a job that has ended.
    def return_value(self) -> Any:
        raise self._return_value

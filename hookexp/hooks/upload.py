"""`UploadHook`: carry the files of a run somewhere else while it trains."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from hookexp.errors import ConfigError
from hookexp.hook import Batch, Hook, Priority
from hookexp.numeric import require_whole

if TYPE_CHECKING:
    from hookexp.runner import Runner

Version = tuple[int, int]
"""Size in bytes and time of the last change in ns."""

MAX_SAID = 500
"""Characters of a failed command's output that a warning repeats."""


class UploadHook(Hook):
    """Copies new and changed files of the run's folder to another, or hands them to a command.

    A thread does it, so training goes on meanwhile; an upload that is due while the last one is
    still busy is left to the next. At the end the run waits for what is missing. A failure is
    warned about once and tried again at the next upload; it never stops the run. Files whose name
    begins with a dot, which others are still writing, are left out; `.hydra/` is not.

        python -m hookexp hooks=+upload hooks.upload.target=/mnt/archive
        python -m hookexp hooks=+upload
            'hooks.upload.command="aws s3 cp {path} s3://bucket/my_run/{name}"'

    Args:
        interval: epochs (or iterations) between two uploads, each at the beginning of the next,
            when checkpoints are written.
        by_epoch: whether `interval` counts epochs, else iterations.
        target: copy to `target/<the last two parts of the run's path>/`, such as
            `target/2026-01-31/12-00-00/`; what is there already is not copied again.
        command: run this for each file instead, without a shell; `{path}` is the file, `{name}`
            its path within the run's folder, with / between folders.
        timeout: seconds that one command may take.

    Raises:
        ValueError: unless exactly one of `target` and `command` is given, and `command` has {path}.
    """

    priority = Priority.LOWEST

    def __init__(
        self,
        interval: int = 1,
        by_epoch: bool = True,
        target: str | None = None,
        command: str | None = None,
        timeout: float = 600.0,
    ) -> None:
        require_whole("interval", interval)
        if (target is None) == (command is None):
            raise ValueError(f"target={target} and command={command}: give one of the two")
        if command is not None and "{path}" not in command:
            raise ValueError(f"command={command}: has to contain {{path}}, where the file goes")
        if not timeout > 0:
            raise ValueError(f"timeout={timeout}: use a number of seconds above 0")
        self.interval = interval
        self.by_epoch = by_epoch
        self.target = target
        self.command = command
        self.timeout = timeout
        self._folder = Path()
        self._uploaded: dict[str, Version] = {}
        self._failures: dict[str, str] = {}
        self._has_warned = False
        self._thread: ThreadPoolExecutor | None = None
        self._running: Future[None] | None = None

    def before_run(self, runner: Runner) -> None:
        if self.target is not None:
            run_folder = runner.work_dir.resolve()
            self._folder = Path(self.target).expanduser().resolve().joinpath(*run_folder.parts[-2:])
            if self._folder.is_relative_to(run_folder):
                raise ConfigError(
                    f"hooks.upload.target={self.target}: is the run's own folder; choose another"
                )
        if runner.rank == 0:
            self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="upload")

    def before_train(self, runner: Runner) -> None:
        if self.by_epoch and self.is_one_long_epoch(runner):
            runner.logger.warning(
                "hooks.upload.by_epoch=true: a run by iterations is one epoch, so nothing is "
                "uploaded before its end; set hooks.upload.by_epoch=false "
                "hooks.upload.interval=%d",
                runner.num_batches_per_epoch or 1000,
            )

    def before_train_epoch(self, runner: Runner) -> None:
        if self.by_epoch and runner.epoch > 0 and runner.epoch % self.interval == 0:
            self._start(runner)

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        if not self.by_epoch and runner.iter > 0 and runner.iter % self.interval == 0:
            self._start(runner)

    def after_run(self, runner: Runner) -> None:
        if self._thread is None:
            return
        self._thread.submit(self._upload_new, runner.work_dir).result()
        self._thread.shutdown()
        self._thread = self._running = None
        self._warn_once(runner)
        if self._failures:
            runner.logger.warning(
                "hook 'upload': not uploaded: %s", ", ".join(sorted(self._failures))
            )

    def _start(self, runner: Runner) -> None:
        self._warn_once(runner)
        if self._thread is not None and (self._running is None or self._running.done()):
            self._running = self._thread.submit(self._upload_new, runner.work_dir)

    def _warn_once(self, runner: Runner) -> None:
        failures = dict(self._failures)
        if failures and not self._has_warned:
            self._has_warned = True
            name, reason = next(iter(failures.items()))
            runner.logger.warning(
                "hook 'upload': %s could not be uploaded, it is tried again at the next upload "
                "(this is said once): %s",
                name,
                reason,
            )

    def _upload_new(self, folder: Path) -> None:
        """Runs in the thread. What goes wrong with a file or a folder is kept; the others go on."""
        failures: dict[str, str] = {}

        def keep(path: Path, error: Exception) -> None:
            if path.exists():  # Else it was deleted meanwhile, such as an old checkpoint.
                name = path.relative_to(folder).as_posix()
                failures[name] = f"{type(error).__name__}: {error}"

        # Path.rglob raises where a folder goes while it is walked.
        walk = os.walk(folder, onerror=lambda error: keep(Path(error.filename), error))
        for path in sorted(Path(parent, name) for parent, _, names in walk for name in names):
            name = path.relative_to(folder).as_posix()
            try:
                if path.name.startswith(".") or not path.is_file():
                    continue
                version = _version_of(path)
                if self._uploaded.get(name) == version:
                    continue
                self._upload(path, name, version)
                self._uploaded[name] = version
            except Exception as error:
                keep(path, error)
        self._failures = failures

    def _upload(self, path: Path, name: str, version: Version) -> None:
        if self.command is None:
            _copy(path, self._folder / name, version)
        else:
            _run(self.command, path, name, self.timeout)


def _version_of(path: Path) -> Version:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _copy(path: Path, target: Path, version: Version) -> None:
    """Copy under a draft's name, so that `target` is always a whole file."""
    if target.is_file() and _version_of(target) == version:
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.draft")
    shutil.copyfile(path, draft)
    # The time of before the copy: a file that changed meanwhile is then copied again.
    os.utime(draft, ns=(version[1], version[1]))
    draft.replace(target)


def _run(command: str, path: Path, name: str, timeout: float) -> None:
    words = [w.replace("{path}", str(path)).replace("{name}", name) for w in shlex.split(command)]
    done = subprocess.run(
        words,
        check=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=timeout,
    )
    if done.returncode != 0:
        said = done.stdout.strip()[-MAX_SAID:] or "it said nothing"
        raise OSError(f"{shlex.join(words)} ended with code {done.returncode}: {said}")

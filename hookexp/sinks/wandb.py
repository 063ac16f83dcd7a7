"""`WandbSink`: the numbers, images and files of a run in Weights & Biases."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hookexp.sink import LogPoint, Sink

if TYPE_CHECKING:
    from torch import Tensor

    from hookexp.runner import Runner

ID_FILE = ".wandb_run_id"


class WandbSink(Sink):
    """Keeps the run in Weights & Biases, or offline in its folder where there is no API key.

    W&B's own step is the training iteration, in rows of every mode: it has to grow, and an x axis
    in epochs would not. `epoch` is beside it, to be chosen as the x axis in the browser. Nothing
    is ever asked on the terminal, and W&B's own messages are silenced; at the end of an offline
    run one line says how to upload it. `WANDB_MODE`, `WANDB_DIR` and the other variables of W&B
    hold wherever the config says null; `WANDB_SILENT=false` and `WANDB_CONSOLE` bring back what
    is turned off here.

    `sinks=+wandb`, `sinks.wandb.project=digits`, `sinks.wandb.mode=offline`

    Args:
        project: None is `WANDB_PROJECT`, else `hookexp`.
        name: None is `WANDB_NAME`, else the name of the experiment.
        mode: online, offline or disabled; None is `WANDB_MODE`, else online.
        id: continue the W&B run of this id; None continues the one of the run's folder, if it
            has one, and else starts a new one.
        entity: user or team; None is your default one.
        group: name under which W&B gathers several runs.
        tags: words to filter by.
        settings: further fields of `wandb.Settings`.
    """

    def __init__(
        self,
        project: str | None = None,
        name: str | None = None,
        mode: str | None = None,
        id: str | None = None,
        entity: str | None = None,
        group: str | None = None,
        tags: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
    ) -> None:
        if mode not in (None, "online", "offline", "disabled"):
            raise ValueError(f"sinks.wandb.mode={mode}: use online, offline, disabled or null")
        self.project = project
        self.name = name
        self.mode = mode
        self.id = id
        self.entity = entity
        self.group = group
        self.tags = tags
        self.settings = settings
        self.run_id: str | None = None
        """The id of the W&B run, from `open` on; as `id` it continues that run."""
        self._run: Any = None

    def open(self, runner: Runner) -> None:
        import wandb

        self._wandb = wandb
        self._logger = runner.logger
        self._work_dir = runner.work_dir
        self._iter = 0
        settings = self._quiet_settings()
        wandb.setup(wandb.Settings(**settings))
        id_file = runner.work_dir / ID_FILE
        earlier_id = id_file.read_text(encoding="utf-8") if id_file.is_file() else None
        run_id = self.id or earlier_id
        mode = self.mode or os.environ.get("WANDB_MODE") or "online"
        # Without a key W&B would prompt or give up, also where online was asked for.
        self._lacks_key = mode == "online" and not self._has_credentials()
        self._run = wandb.init(
            project=self.project or os.environ.get("WANDB_PROJECT") or "hookexp",
            name=self.name or os.environ.get("WANDB_NAME") or runner.experiment_name,
            mode="offline" if self._lacks_key else mode,  # type: ignore[arg-type]
            dir=os.environ.get("WANDB_DIR") or str(runner.work_dir),
            id=run_id,
            resume="allow" if run_id else None,
            entity=self.entity,
            group=self.group,
            tags=list(self.tags) or None,
            settings=wandb.Settings(**settings),
        )
        self.run_id = self._run.id
        id_file.write_text(self._run.id, encoding="utf-8")
        if self._run.url:
            self._logger.info("W&B: %s", self._run.url)

    def log_config(self, config: Mapping[str, Any]) -> None:
        self._run.config.update(dict(config), allow_val_change=True)

    def log_scalars(self, scalars: Mapping[str, float], step: int, point: LogPoint) -> None:
        if point.is_progress:
            return
        self._iter = point.iter
        row: dict[str, Any] = {f"{point.mode}/{name}": scalars[name] for name in scalars}
        row["epoch"] = point.epoch
        self._run.log(row, step=point.iter)

    def log_image(self, name: str, image: Tensor, step: int) -> None:
        picture = self._wandb.Image(image.detach().cpu().permute(1, 2, 0).numpy())
        self._run.log({name: picture}, step=self._iter)

    def log_artifact(self, name: str, path: Path, step: int) -> None:
        """Files keep their place: W&B shows them under their path in the run's folder."""
        self._run.save(str(path), base_path=str(self._work_dir), policy="now")

    def close(self) -> None:
        if self._run is None:
            return
        run, self._run = self._run, None
        run.finish()
        if run.offline:
            reason = ": no API key was found (`wandb login`)" if self._lacks_key else ""
            folder = Path(run.dir).parent
            self._logger.info("W&B was offline%s. To upload: wandb sync %s", reason, folder)

    def _quiet_settings(self) -> dict[str, Any]:
        """What W&B prints and captures is off, unless its variables or the config say otherwise.

        Capturing the console would put W&B's own stream in the place of the progress line's.
        """
        settings: dict[str, Any] = {}
        if "WANDB_SILENT" not in os.environ:
            settings["silent"] = True
        if "WANDB_CONSOLE" not in os.environ:
            settings["console"] = "off"
        return {**settings, **(self.settings or {})}

    def _has_credentials(self) -> bool:
        try:
            return bool(self._wandb.login(prompt=False, verify=False))
        except TypeError:
            # Before `prompt` existed, `login` asked on the terminal; there this attribute is the
            # way. It can go when the oldest wandb that we allow has `prompt`.
            return bool(self._wandb.api.api_key)

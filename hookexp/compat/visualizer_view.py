"""The sinks as MMEngine's `Visualizer`: numbers and pictures are added to it one by one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hookexp.compat.view import View
from hookexp.sink import LogPoint


class VisualizerView(View):
    """What is added goes to the sinks; what is drawn is drawn by a visualizer of MMEngine.

    That one is made when it is first asked for, since it takes long and few hooks draw.

    Args of the constructor:
        find_runner: the view of the run, None while there is none.
    """

    published = ("mmengine.visualization", "Visualizer")

    def add_scalar(self, name: str, value: Any, step: int = 0, *_: Any, **__: Any) -> None:
        self.add_scalars({name: value}, step)

    def add_scalars(
        self, scalar_dict: Mapping[str, Any], step: int = 0, *_: Any, **__: Any
    ) -> None:
        """One row; what is not a number is left out."""
        runner = self._runner()
        row = {k: float(v) for k, v in scalar_dict.items() if _is_number(v)}
        point = LogPoint(
            mode=runner.stage,
            epoch=runner.epoch + 1,
            iter=runner.iter,
            batch=runner.inner_iter + 1,
            num_batches=None,
            is_result=True,
        )
        self._opened().log_scalars(row, step, point)

    def add_image(self, name: str, image: Any, step: int = 0, *_: Any, **__: Any) -> None:
        """A picture: uint8 of shape (height, width, 3), NumPy array or tensor."""
        pixels = torch.as_tensor(image).permute(2, 0, 1).contiguous()
        self._opened().log_image(name, pixels, step)

    def add_datasample(self, name: str, image: Any = None, *_: Any, **more: Any) -> None:
        """The picture alone: what is drawn over it is a matter of the visualizer's own class."""
        if image is not None:
            self.add_image(name, image, more.get("step", 0))

    def add_config(self, config: Mapping[str, Any], *_: Any, **__: Any) -> None:
        self._opened().log_config(config)

    def add_graph(self, *_: Any, **__: Any) -> None:
        """Sinks take no graphs; a hook that adds one need not fail for that."""

    def close(self) -> None:
        """The sinks are closed by the run."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self._drawing(), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._drawing(), name, value)

    def _drawing(self) -> Any:
        """A visualizer of MMEngine that has no backend: it draws and keeps nothing."""
        if vars(self)["_viewed"] is None:
            module: Any = sys.modules.get("mmengine.visualization")
            if module is None:
                raise AttributeError("visualizer: to draw with it, mmengine has to be installed")
            vars(self)["_viewed"] = module.Visualizer("hookexp_drawing")
        return vars(self)["_viewed"]

    def _runner(self) -> Any:
        runner = vars(self)["find_runner"]()
        if runner is None:
            raise RuntimeError("visualizer: there is no run; add to it inside a mount point")
        return runner

    def _opened(self) -> Any:
        runner = vars(self._runner())["_viewed"]
        if not runner.sinks.is_open:
            runner.sinks.open(runner)
        return runner.sinks


def _is_number(value: Any) -> bool:
    if isinstance(value, (Tensor, np.ndarray)):
        return bool(value.size == 1) if isinstance(value, np.ndarray) else value.numel() == 1
    return isinstance(value, (int, float, np.generic)) and not isinstance(value, bool)

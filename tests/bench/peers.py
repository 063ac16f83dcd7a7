"""The same training by other frameworks, where they are installed (`pip install -e '.[peers]'`).

Each function returns microseconds per iteration, by the same stopwatch as ours: the batches.
"""

from __future__ import annotations

import importlib.util
import logging
import warnings
from typing import Any

import torch
from workloads import Batches, Workload, folder, quiet, us_per_iteration

_MODULES = {"MMEngine": "mmengine", "Lightning": "lightning", "Ignite": "ignite"}


def installed() -> dict[str, bool]:
    """Which of the frameworks are here, by their names."""
    return {name: importlib.util.find_spec(module) is not None for name, module in _MODULES.items()}


# -- MMEngine -----------------------------------------------------------------------------------


class _LikeALoader(Batches):
    """Ready batches with the names that MMEngine's hooks and loops look for."""

    def __init__(self, workload: Workload, num_batches: int) -> None:
        vars(self).update(vars(workload.batches(num_batches)))
        self.sampler = self.batch_sampler = self
        self.batch_size = workload.batch_size


def mmengine_us(
    workload: Workload, iters: int, default_hooks: bool = True, num_no_ops: int = 0
) -> float:
    """With its default hooks, logging every 10 to the console, JSON and TensorBoard, or none."""
    from mmengine.hooks import Hook
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Model(BaseModel):
        def __init__(self) -> None:
            super().__init__()
            self.net = workload.model()

        def forward(self, inputs: Any, targets: Any, mode: str = "loss") -> dict[str, Any]:
            return {"loss": workload.loss(self.net, (inputs, targets))}

    class NoOp(Hook):
        def before_train_iter(self, runner, batch_idx, data_batch=None):
            pass

        def after_train_iter(self, runner, batch_idx, data_batch=None, outputs=None):
            pass

    names = ("runtime_info", "timer", "sampler_seed", "logger", "param_scheduler", "checkpoint")
    hooks: dict[str, Any] = dict.fromkeys(names)
    if default_hooks:
        hooks = {
            "logger": {"type": "LoggerHook", "interval": 10},
            "checkpoint": {"type": "CheckpointHook", "interval": -1, "save_last": False},
        }
    backends = [{"type": "LocalVisBackend"}, {"type": "TensorboardVisBackend"}]
    work_dir = folder()
    model = Model()
    schedule = {"type": "CosineAnnealingLR", "by_epoch": False, "T_max": iters}
    with quiet():
        runner = Runner(
            model=model,
            work_dir=str(work_dir),
            train_dataloader=_LikeALoader(workload, iters),
            train_cfg={"by_epoch": True, "max_epochs": 1},
            optim_wrapper={
                "type": "OptimWrapper",
                "optimizer": workload.optimizer(model.parameters()),
            },
            param_scheduler=[schedule] if default_hooks else None,
            default_hooks=hooks,
            custom_hooks=[NoOp() for _ in range(num_no_ops)],
            visualizer={"type": "Visualizer", "vis_backends": backends if default_hooks else []},
            experiment_name=work_dir.name,
        )
        runner.train()
        for handler in runner.logger.handlers:
            handler.close()
    return us_per_iteration(workload)


# -- Lightning ----------------------------------------------------------------------------------


def lightning_us(
    workload: Workload, iters: int, barebones: bool = False, num_no_ops: int = 0
) -> float:
    """With its defaults, logging every 10 to CSV and TensorBoard, or as `barebones`."""
    import lightning
    from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = workload.model()

        def training_step(self, batch, batch_idx):
            loss = workload.loss(self.net, batch)
            if not barebones:
                self.log("loss", loss, prog_bar=True)
            return loss

        def configure_optimizers(self):
            optimizer = workload.optimizer(self.parameters())
            if barebones:
                return optimizer
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iters)
            return [optimizer], [{"scheduler": schedule, "interval": "step"}]

    class NoOp(lightning.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            pass

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            pass

    module, work_dir = Module(), folder()
    options: dict[str, Any] = {"barebones": True}
    if not barebones:
        options = {
            "logger": [TensorBoardLogger(work_dir), CSVLogger(work_dir)],
            "log_every_n_steps": 10,
            "enable_checkpointing": False,
            "enable_model_summary": False,
        }
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = lightning.Trainer(
            accelerator="cpu",
            max_steps=iters,
            callbacks=[NoOp() for _ in range(num_no_ops)],
            default_root_dir=work_dir,
            **options,
        )
        trainer.fit(module, _LikeALoader(workload, iters))
    return us_per_iteration(workload)


# -- Ignite -------------------------------------------------------------------------------------


def ignite_us(
    workload: Workload, iters: int, with_logging: bool = False, num_no_ops: int = 0
) -> float:
    """No handler, or a schedule and its TensorBoard logger and progress bar every 10."""
    from ignite.engine import Engine, Events

    model = workload.model().train()
    optimizer = workload.optimizer(model.parameters())

    def step(engine, batch):
        optimizer.zero_grad()
        loss = workload.loss(model, batch)
        loss.backward()
        optimizer.step()
        # It waits for the device at every step, as Ignite's own trainers do.
        return loss.item() if with_logging else loss

    def no_op(engine):
        pass

    engine = Engine(step)
    writer = None
    if with_logging:
        writer = _attach_ignite_logging(engine, optimizer, iters)
    for _ in range(num_no_ops):
        engine.add_event_handler(Events.ITERATION_STARTED, no_op)
        engine.add_event_handler(Events.ITERATION_COMPLETED, no_op)
    with quiet():
        engine.run(workload.batches(iters), max_epochs=1)
    if writer is not None:
        writer.close()
    return us_per_iteration(workload)


def _attach_ignite_logging(engine: Any, optimizer: Any, iters: int) -> Any:
    from ignite.engine import Events
    from ignite.handlers import LRScheduler, ProgressBar
    from ignite.handlers.tensorboard_logger import TensorboardLogger

    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iters)
    engine.add_event_handler(Events.ITERATION_STARTED, LRScheduler(schedule))
    every = Events.ITERATION_COMPLETED(every=10)
    writer = TensorboardLogger(log_dir=str(folder()))
    writer.attach_output_handler(
        engine, every, tag="train", output_transform=lambda loss: {"loss": loss}
    )
    writer.attach_opt_params_handler(engine, every, optimizer)
    ProgressBar(file=open("/dev/null", "w")).attach(  # noqa: SIM115
        engine, output_transform=lambda loss: {"loss": loss}, event_name=every
    )
    return writer

"""Averages of the weights, which serve validation and test while training goes on untouched.

python -m hookexp hooks=+ema
python -m hookexp hooks=+ema/swa                # a plain mean, from a given step on
python -m hookexp hooks=+ema hooks.ema.momentum=0.001
"""

from __future__ import annotations

import copy
import logging
from typing import Any

import torch
from torch import Tensor, nn

from hookexp import dist
from hookexp.errors import ConfigError
from hookexp.hook import Batch, Hook, Priority
from hookexp.numeric import require_whole
from hookexp.optim.averages import Averages
from hookexp.runner import Runner

EMA_TYPES = ("ExponentialMovingAverage", "MomentumAnnealingEMA", "StochasticWeightAverage")


class EMAHook(Hook):
    """Keeps averages beside the weights, and exchanges the two around an evaluation.

    They are exchanged back in `after_val`, so that at `after_val_epoch` every hook, whatever its
    priority, finds the weights that were evaluated.

    The first update copies the weights. With `steps` of them done, the share of the new values
    in an average is

        ExponentialMovingAverage  momentum; with warm_up max(momentum, 9 / (10 + steps)), so that
                                  the first weights are soon forgotten (tf.train's
                                  ExponentialMovingAverage with num_updates)
        MomentumAnnealingEMA      max(momentum, gamma / (gamma + steps))
        StochasticWeightAverage   1 / (steps // interval + 1)    (Izmailov et al. 2018, a plain
                                  mean of the weights, arXiv:1803.05407)

    Of several optimizers the first one's steps count, and the averages move at the end of an
    iteration in which it stepped, when the others have stepped too.

    In a checkpoint `state_dict` holds the averages and `ema_state_dict` the raw weights, so that
    `load_from` takes the averages and a resume restores both.

    Args:
        ema_type: one of the three names above.
        momentum: weight of the new values, between 0 and 1.
        interval: optimizer steps between two updates.
        gamma: of MomentumAnnealingEMA.
        warm_up: of ExponentialMovingAverage.
        update_buffers: average floating-point buffers too; else evaluations use the current ones.
        device: where the averages are kept; null is the model's device. With `cpu` in a run on a
            GPU the host waits for the weights at each update.
        strict_load: whether a resume needs the raw weights in the checkpoint, unless it is one from
            before averaging began.
        begin_iter: optimizer step at which averaging begins; the raw weights serve before it.
        begin_epoch: the same in epochs; only one of the two may be above 0.
    """

    priority = Priority.NORMAL
    swaps_weights = True
    before = ("checkpoint",)  # A checkpoint asked for at the same point holds this step's average.

    def __init__(
        self,
        ema_type: str = "ExponentialMovingAverage",
        momentum: float = 0.0002,
        interval: int = 1,
        gamma: int = 100,
        warm_up: bool = False,
        update_buffers: bool = False,
        device: str | None = None,
        strict_load: bool = False,
        begin_iter: int = 0,
        begin_epoch: int = 0,
    ) -> None:
        if ema_type not in EMA_TYPES:
            raise ValueError(f"ema_type={ema_type}: use one of {', '.join(EMA_TYPES)}")
        if not 0.0 < momentum < 1.0:
            raise ValueError(f"momentum={momentum}: use a number between 0 and 1")
        require_whole("interval", interval)
        require_whole("gamma", gamma)
        require_whole("begin_iter", begin_iter, 0)
        require_whole("begin_epoch", begin_epoch, 0)
        try:
            torch.device(device or "cpu")
        except RuntimeError:
            raise ValueError(f"device={device}: use null, cpu, cuda or cuda:1") from None
        if begin_iter > 0 and begin_epoch > 0:
            raise ValueError(
                f"begin_iter={begin_iter} and begin_epoch={begin_epoch}: only one may be above 0"
            )
        self.ema_type = ema_type
        self.momentum = momentum
        self.interval = interval
        self.gamma = gamma
        self.warm_up = warm_up
        self.update_buffers = update_buffers
        self.device = device
        self.strict_load = strict_load
        self.begin_iter = begin_iter
        self.begin_epoch = begin_epoch
        self.steps = 0
        self._model: nn.Module = nn.Module()
        self._averages = Averages([])
        self._loaded: dict[str, Tensor] = {}
        self._is_swapped = False
        self._steps_by_turns = False
        self._seen_steps = 0

    def after_load_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        """On a resume the model gets the raw weights, and the averages are kept for later."""
        if not runner.resumed:
            return
        if "ema_state_dict" not in checkpoint:
            if self.strict_load and not self._had_not_begun(runner, checkpoint):
                raise ConfigError(
                    "hooks.ema.strict_load=true: the checkpoint has no averages; set it to false "
                    "to begin them with the weights that it has"
                )
            return
        self._loaded = dict(checkpoint["state_dict"])
        checkpoint["state_dict"] = checkpoint["ema_state_dict"]

    def before_train(self, runner: Runner) -> None:
        """Averages begin as copies of the weights, which are initialised or loaded by now."""
        if self.begin_epoch > 0 and not runner.by_epoch:
            raise ConfigError(
                f"hooks.ema.begin_epoch={self.begin_epoch}: this run counts iterations and has no "
                "epochs; use begin_iter"
            )
        self._warn_if_never_to_begin(runner)
        self._steps_by_turns = len(runner.optim_wrapper.optimizers) > 1
        self._seen_steps = runner.state.optim_steps
        self._model = dist.unwrap(runner.model)
        weights = _averaged_tensors(self._model, self.update_buffers)
        self._averages = Averages(weights, torch.device(self.device) if self.device else None)
        if self._loaded:
            for average, names in zip(self._averages.values, self._names(), strict=True):
                if names:
                    average.copy_(self._loaded[names[0]])
            self._loaded = {}
        self._warn_of_averages_that_are_not_saved(runner)

    def after_optim_step(self, runner: Runner) -> None:
        if not self._steps_by_turns:
            self._average(runner)

    def after_train_iter(
        self,
        runner: Runner,
        batch_idx: int,
        data_batch: Batch = None,
        outputs: dict[str, Any] | None = None,
    ) -> None:
        """Of optimizers that step by turns, the last one of an iteration has stepped by now."""
        if self._steps_by_turns and runner.state.optim_steps > self._seen_steps:
            self._seen_steps = runner.state.optim_steps
            self._average(runner)

    def _average(self, runner: Runner) -> None:
        if not self._has_begun(runner):
            return
        if self.steps == 0:
            self._averages.move(1.0)
        elif self.steps % self.interval == 0:
            self._averages.move(self._share_of_new())
        self.steps += 1

    def before_val_epoch(self, runner: Runner) -> None:
        self._swap_in()

    def after_train(self, runner: Runner) -> None:
        """A validation that was given up has no end of its own."""
        self._swap_out()

    def after_val(self, runner: Runner) -> None:
        self._swap_out()

    def before_test_epoch(self, runner: Runner) -> None:
        self._swap_in()

    def after_test(self, runner: Runner) -> None:
        self._swap_out()

    def after_run(self, runner: Runner) -> None:
        """Neither has a test that was given up."""
        self._swap_out()

    def on_exception(self, runner: Runner, error: BaseException) -> None:
        self._swap_out()

    def before_save_checkpoint(self, runner: Runner, checkpoint: dict[str, Any]) -> None:
        if self.steps == 0:
            return
        assert not self._is_swapped, "a checkpoint is saved only after an evaluation has ended"
        raw = checkpoint["state_dict"]
        averaged = copy.copy(raw)  # With the versions of modules, which dict() would drop.
        for average, names in zip(self._averages.values, self._names(), strict=True):
            averaged.update(dict.fromkeys(names, average))
        checkpoint["state_dict"] = averaged
        checkpoint["ema_state_dict"] = raw

    def state_dict(self) -> dict[str, Any]:
        moved = {
            name: average
            for name, (tensor, average) in self._of_other_buffers().items()
            if not torch.equal(average, tensor.to(average.device))
        }
        others = {"of_other_buffers": moved} if moved else {}
        return {"steps": self.steps, "ema_type": self.ema_type, **others}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.steps = state["steps"]
        before = state.get("ema_type", self.ema_type)
        if before != self.ema_type and self.steps > 0:
            logging.getLogger("hookexp").warning(
                "hooks.ema.ema_type=%s: the averages so far were made as %s, and go on from there; "
                "to begin them anew with the weights of now: 'resume_ignore=[hooks.ema]'",
                *(self.ema_type, before),
            )
        others = self._of_other_buffers()
        for name, saved in state.get("of_other_buffers", {}).items():
            if name in others:
                others[name][1].copy_(saved)

    def _warn_if_never_to_begin(self, runner: Runner) -> None:
        """No error: a quick look (`trainer.fast_dev_run`) ends before the averages begin."""
        for name, begin, end in (
            ("begin_epoch", self.begin_epoch, runner.max_epochs),
            ("begin_iter", self.begin_iter, runner.max_optim_steps),
        ):
            if end is not None and begin > end:
                runner.logger.warning(
                    "hooks.ema.%s=%d: the run ends at %d, so averaging never begins",
                    name,
                    begin,
                    end,
                )

    def _had_not_begun(self, runner: Runner, checkpoint: dict[str, Any]) -> bool:
        """Whether the run that wrote a checkpoint had this hook and was still to begin averages."""
        name = next(entry.name for entry in runner.hooks.entries if entry.hook is self)
        state = checkpoint.get("hooks", {}).get(name, {})
        return bool(state.get("steps") == 0)

    def _warn_of_averages_that_are_not_saved(self, runner: Runner) -> None:
        """No error: weights that never change may be left out of a state_dict on purpose."""
        found = zip(self._averages.tensors, self._names(), strict=True)
        nameless = {id(tensor) for tensor, names in found if not names}
        lost = [name for name, p in self._model.named_parameters() if id(p) in nameless]
        if lost:
            runner.logger.warning(
                "hooks.ema: the averages of %d parameters (%s%s) will be in no checkpoint and "
                "begin anew after a resume, since the model's state_dict does not hold these "
                "parameters themselves; have it return what torch.nn.Module.state_dict does",
                len(lost),
                ", ".join(lost[:3]),
                ", ..." if len(lost) > 3 else "",
            )

    def _has_begun(self, runner: Runner) -> bool:
        if self.begin_epoch > 0:
            return runner.epoch + 1 >= self.begin_epoch
        return runner.state.optim_steps >= self.begin_iter

    def _share_of_new(self) -> float:
        if self.ema_type == "StochasticWeightAverage":
            return 1.0 / (self.steps // self.interval + 1)
        if self.ema_type == "MomentumAnnealingEMA":
            return max(self.momentum, self.gamma / (self.gamma + self.steps))
        return max(self.momentum, 9 / (10 + self.steps)) if self.warm_up else self.momentum

    def _of_other_buffers(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Buffers that are not persistent, which the model's state_dict does not have."""
        pairs = zip(self._averages.tensors, self._averages.values, self._names(), strict=True)
        others = {id(tensor): (tensor, average) for tensor, average, names in pairs if not names}
        buffers = self._model.named_buffers()
        return {name: others[id(buffer)] for name, buffer in buffers if id(buffer) in others}

    def _names(self) -> list[list[str]]:
        """Under which names each average stands in the model's state_dict; tied ones have two."""
        tensors = self._averages.tensors
        names: dict[int, list[str]] = {id(t): [] for t in tensors}
        for name, tensor in self._model.state_dict(keep_vars=True).items():
            if id(tensor) in names:
                names[id(tensor)].append(name)
        return [names[id(t)] for t in tensors]

    def _swap_in(self) -> None:
        if self.steps > 0 and not self._is_swapped:
            self._averages.exchange()
            self._is_swapped = True

    def _swap_out(self) -> None:
        if self._is_swapped:
            self._averages.exchange()
            self._is_swapped = False


def _averaged_tensors(model: nn.Module, with_buffers: bool) -> list[Tensor]:
    """The tensors an average is kept of, each once; integers cannot be averaged."""
    tensors: list[Tensor] = list(model.parameters())
    if with_buffers:
        tensors += list(model.buffers())
    return [t for t in tensors if t.is_floating_point()]

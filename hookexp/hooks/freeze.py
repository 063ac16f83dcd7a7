"""Parts of a model that do not learn, until an epoch or for good.

python -m hookexp hooks=+freeze 'hooks.freeze.params=[stem, "*.bias"]' hooks.freeze.until_epoch=5
"""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from hookexp import dist
from hookexp.errors import ConfigError
from hookexp.hook import Batch, Hook, Priority
from hookexp.numeric import is_whole
from hookexp.optim.param_groups import select_all
from hookexp.runner import Runner

FROZEN = "frozen_params"
"""Info in the message hub: names of the parameters that do not learn now, for other hooks.

With several ranks they go on having gradients, so `requires_grad` does not tell.
"""


class FreezeHook(Hook):
    """Keeps parameters where they are, to train a new head before the features under it move.

    A frozen parameter has no gradient, so weight decay and momentum do not move it either. What
    is frozen is a function of the run's position; nothing has to be saved.

    Args:
        params: names of parameters or of parts of the model, `*` and `[ab]` allowed.
        until_epoch: finished epochs after which they learn; null with `until_iter` null: never.
        until_iter: the same in iterations; give one of the two.
        batch_norm_eval: batch norm whose own parameters are all frozen keeps its statistics too.
    """

    priority = Priority.VERY_HIGH

    def __init__(
        self,
        params: list[str],
        until_epoch: int | None = None,
        until_iter: int | None = None,
        batch_norm_eval: bool = True,
    ) -> None:
        if not isinstance(params, list) or not all(isinstance(p, str) for p in params):
            raise ValueError(f"params={params}: use a list of names, such as [stem, '*.bias']")
        for key, value in (("until_epoch", until_epoch), ("until_iter", until_iter)):
            if value is not None and not is_whole(value, 1):
                raise ValueError(f"{key}={value}: use null or a whole number, 1 or more")
        if until_epoch is not None and until_iter is not None:
            raise ValueError(
                f"until_epoch={until_epoch} and until_iter={until_iter}: give one of the two"
            )
        self.params = params
        self.until_epoch = until_epoch
        self.until_iter = until_iter
        self.batch_norm_eval = batch_norm_eval
        self._names: frozenset[str] = frozenset()
        self._frozen: list[nn.Parameter] = []
        self._norms: list[nn.Module] = []

    def before_train(self, runner: Runner) -> None:
        if self.until_epoch is not None and not runner.by_epoch:
            raise ConfigError(
                f"hooks.freeze.until_epoch={self.until_epoch}: this run counts iterations and has "
                "no epochs; use until_iter"
            )
        if self._is_over(runner):
            return
        model = dist.unwrap(runner.model)
        by_others = runner.message_hub.get_info(FROZEN, frozenset())
        learning = {
            name: p
            for name, p in model.named_parameters()
            if p.requires_grad and name not in by_others
        }
        names = [n for n, _ in model.named_parameters() if n in learning or n in by_others]
        chosen = select_all(self.params, names, "hooks.freeze.params")
        if twice := [name for name in chosen if name in by_others]:
            raise ConfigError(
                f"hooks.freeze.params={self.params}: {twice[0]} is frozen by another hook already; "
                "name it in one of them"
            )
        if len(chosen) == len(learning):
            raise ConfigError(f"hooks.freeze.params={self.params}: nothing is left to learn")
        if not chosen:
            runner.logger.warning("hooks.freeze.params is empty: nothing is frozen")
        self._frozen = [learning[name] for name in chosen]
        self._names = frozenset(chosen)
        runner.message_hub.update_info(FROZEN, by_others | self._names)
        if self.batch_norm_eval:
            self._norms = _norms_of(model, self._frozen)
        # DDP has planned for the gradients of all parameters: there they are computed and dropped.
        self._set_requires_grad(runner.model is not model)
        self._drop_gradients()

    def before_train_iter(self, runner: Runner, batch_idx: int, data_batch: Batch = None) -> None:
        if self._frozen and self._is_over(runner):
            self._thaw(runner)
        if self._norms and self._norms[0].training:  # As after each validation.
            for norm in self._norms:
                norm.eval()

    def before_optim_step(self, runner: Runner) -> None:
        self._drop_gradients()

    def after_run(self, runner: Runner) -> None:
        self._thaw(runner)

    def _is_over(self, runner: Runner) -> bool:
        if self.until_epoch is not None:
            return runner.epoch >= self.until_epoch
        return self.until_iter is not None and runner.iter >= self.until_iter

    def _thaw(self, runner: Runner) -> None:
        by_others = runner.message_hub.pop_info(FROZEN, frozenset()) - self._names
        if by_others:
            runner.message_hub.update_info(FROZEN, by_others)
        self._set_requires_grad(True)
        for norm in self._norms:
            norm.train()
        self._frozen, self._norms = [], []

    def _set_requires_grad(self, value: bool) -> None:
        for parameter in self._frozen:
            parameter.requires_grad_(value)

    def _drop_gradients(self) -> None:
        """An optimizer passes over parameters whose gradient is None, but not over zeros."""
        for parameter in self._frozen:
            parameter.grad = None


def _norms_of(model: nn.Module, frozen: list[nn.Parameter]) -> list[nn.Module]:
    """The batch norms whose own parameters are all frozen; those without any are not."""
    ids = {id(p) for p in frozen}
    norms = (m for m in model.modules() if isinstance(m, _BatchNorm))
    return [m for m in norms if m.affine and all(id(p) in ids for p in m.parameters())]

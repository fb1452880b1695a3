"""Base class of the fine-tuning strategies."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from jaxtyping import Array

from ..models.base import Model, ModuleCall
from ..optim.optimizers import FreezeImpl
from ..optim.partition import Groups, Rule
from ..types import Params

Table = tuple[Rule, ...]


@dataclass(frozen=True)
class Strategy:
    """Base of every strategy. Most strategies define :meth:`table` only.

    ``freeze_impl``: how frozen parameters are left unchanged. ``pretrained``: whether fine-tuning starts from
    pre-trained parameters. ``adapter_params``: the last parts of the paths (``lora_a``) of the parameters that
    :meth:`prepare` adds beside a module's own.
    """

    freeze_impl: ClassVar[FreezeImpl] = FreezeImpl.split
    pretrained: ClassVar[bool] = True
    adapter_params: ClassVar[tuple[str, ...]] = ()

    def table(self, groups: Groups) -> Table:
        """Return the rules ``(pattern, learning-rate scale or FROZEN)``; the first match decides.

        Args:
            groups: the model's groups from bottom to top, the head last.
        """
        raise TypeError(f"{type(self).__name__} does not define table()")

    def tables(self, groups: Groups) -> tuple[Table, ...]:
        """Return one table for each phase of fine-tuning."""
        return (self.table(groups),)

    def phase_steps(self, phases: int, steps: int, epoch: int) -> tuple[int, ...]:
        """Return the number of updates of each phase. They sum to ``steps``.

        Args:
            phases: number of tables.
            steps: updates of fine-tuning.
            epoch: updates of one epoch.

        Raises:
            UserError: the phases do not fit in ``steps``.
        """
        return (steps,)

    def prepare(self, key: Array, params: Params, model: Model) -> Params:
        """Return parameters, by path, that are added to the pre-trained ones or replace them.

        It may be called under ``jax.eval_shape``.

        Args:
            key: for random initial values.
            params: the pre-trained parameters, with the head of the target task.
            model: the model.

        Raises:
            UserError: a setting does not fit the parameters.
        """
        return {}

    def wrap_call(self, ctx: ModuleCall) -> Array:
        """Return the output of a module that has adapter parameters beside its own."""
        return ctx.call(ctx.x)

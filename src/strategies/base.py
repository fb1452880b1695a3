"""What a strategy is: an ordered table of patterns, made from the model's groups, and what little else it may need."""

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
    """Base of every strategy. Most say only :meth:`table`; the rest is for those that add something.

    ``form`` says how the engine keeps frozen parameters still, ``pretrained`` whether there is a pre-training to start
    from, ``adapter_params`` the last names (``lora_a``) of the leaves that :meth:`prepare` puts beside a module's own.
    """

    form: ClassVar[FreezeImpl] = FreezeImpl.split
    pretrained: ClassVar[bool] = True
    adapter_params: ClassVar[tuple[str, ...]] = ()

    def table(self, groups: Groups) -> Table:
        """Return the lines ``(pattern, learning-rate multiplier or FROZEN)``; the first match decides.

        Args:
            groups: the model's groups from bottom to top, the head last.
        """
        raise TypeError(f"{type(self).__name__} does not make a table")

    def tables(self, groups: Groups) -> tuple[Table, ...]:
        """Return one table a phase of fine-tuning, in their order."""
        return (self.table(groups),)

    def lengths(self, phases: int, steps: int, epoch: int) -> tuple[int, ...]:
        """Return the number of updates of each phase; they add up to ``steps``.

        Args:
            phases: how many tables there are.
            steps: updates of fine-tuning altogether.
            epoch: updates in which every row is seen once.

        Raises:
            UserError: the phases do not fit in ``steps``.
        """
        return (steps,)

    def prepare(self, key: Array, params: Params, model: Model) -> Params:
        """Return what fine-tuning adds to the pre-trained parameters, or starts anew, by path.

        It may be called for shapes alone (under ``jax.eval_shape``).

        Args:
            key: of random initial values.
            params: the pre-trained parameters, already with the head of the target task.
            model: for its groups.

        Raises:
            UserError: a setting that does not fit these parameters.
        """
        return {}

    def wrap_call(self, ctx: ModuleCall) -> Array:
        """Return the output of a module that has adapter parameters beside its own."""
        return ctx.call(ctx.x)

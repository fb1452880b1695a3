"""``strategy=frozen``: the trunk is frozen, the head is trained (the reference recipe)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..optim.optimizers import FreezeImpl
from ..optim.partition import FROZEN, Groups, Rule
from .base import Strategy


@dataclass(frozen=True)
class Frozen(Strategy):
    """A frozen trunk, by ``optax.multi_transform`` with ``set_to_zero`` as in the reference recipe."""

    freeze_impl: ClassVar[FreezeImpl] = FreezeImpl.multi_transform

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return rules that train the head only."""
        return (("head", 1.0), (".*", FROZEN))

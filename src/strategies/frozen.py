"""``strategy=frozen``: the trunk stays as pre-trained, the head moves (the reference recipe)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..optim.optimizers import FreezeImpl
from ..optim.partition import FROZEN, Groups, Rule
from .base import Strategy


@dataclass(frozen=True)
class Frozen(Strategy):
    """Frozen trunk, in the form the reference recipe names: ``optax.multi_transform`` with ``set_to_zero``."""

    form: ClassVar[FreezeImpl] = FreezeImpl.multi_transform

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return: the head moves, the rest does not."""
        return (("head", 1.0), (".*", FROZEN))

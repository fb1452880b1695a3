"""``strategy=masked``: the parameters that the given patterns match are trained, the rest is frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.hparams import hparam
from ..errors import UserError
from ..optim.optimizers import FreezeImpl
from ..optim.partition import FROZEN, Groups, Rule
from .base import Strategy


@dataclass(frozen=True)
class Masked(Strategy):
    """Training by pattern, a group's name or an expression on whole paths, with ``optax.masked``."""

    freeze_impl: ClassVar[FreezeImpl] = FreezeImpl.masked
    trainable: tuple[str, ...] = hparam(("head",))

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return one rule a pattern, then one that freezes the rest."""
        if not self.trainable:
            raise UserError("strategy.trainable is empty: it leaves nothing to train")
        return (*((pattern, 1.0) for pattern in self.trainable), (".*", FROZEN))

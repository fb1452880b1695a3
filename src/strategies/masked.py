"""``strategy=masked``: whatever the given patterns match moves, the rest does not."""

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
    """Train by pattern, in the form of ``optax.masked`` with the frozen half chained to zero.

    ``trainable``: names of groups or regular expressions on whole paths; the default is what ``frozen`` trains.
    """

    form: ClassVar[FreezeImpl] = FreezeImpl.masked
    trainable: tuple[str, ...] = hparam(("head",))

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return one line a pattern, then: the rest does not move."""
        if not self.trainable:
            raise UserError("strategy.trainable is empty: it leaves nothing to train")
        return (*((pattern, 1.0) for pattern in self.trainable), (".*", FROZEN))

"""``strategy=masked``: whatever the given patterns match moves, the rest does not."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from src.config import knob
from src.engine.optimizers import Form
from src.engine.partition import FROZEN, Groups, Line
from src.errors import UserError
from src.strategies.base import Strategy


@dataclass(frozen=True)
class Masked(Strategy):
    """Train by pattern, in the form of ``optax.masked`` with the frozen half chained to zero.

    ``trainable``: names of groups or regular expressions on whole paths; the default is what ``frozen`` trains.
    """

    form: ClassVar[Form] = Form.masked
    trainable: tuple[str, ...] = knob(("head",))

    def table(self, groups: Groups) -> tuple[Line, ...]:
        """Return one line a pattern, then: the rest does not move."""
        if not self.trainable:
            raise UserError("strategy.trainable is empty: it leaves nothing to train")
        return (*((pattern, 1.0) for pattern in self.trainable), (".*", FROZEN))

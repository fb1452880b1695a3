"""``strategy=scratch``: no pre-training at all, the baseline that every transfer has to beat."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..optim.partition import Groups, Rule
from .base import Strategy


@dataclass(frozen=True)
class Scratch(Strategy):
    """Everything moves, from fresh initial parameters (compare He, Girshick and Dollár, arXiv 1811.08883).

    What a pre-training is worth is the difference to this at the same number of updates, each with its own best rate.
    """

    pretrained: ClassVar[bool] = False

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return one line for everything."""
        return ((".*", 1.0),)

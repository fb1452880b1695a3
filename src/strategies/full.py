"""``strategy=full`` and ``scratch``: all parameters are trained, from pre-trained or random initial values."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..optim.partition import Groups, Rule
from .base import Strategy


@dataclass(frozen=True)
class Full(Strategy):
    """Full fine-tuning."""

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return one rule for all parameters."""
        return ((".*", 1.0),)


@dataclass(frozen=True)
class Scratch(Full):
    """Training from random initial parameters (compare He, Girshick and Dollár, arXiv 1811.08883)."""

    pretrained: ClassVar[bool] = False

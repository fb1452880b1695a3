"""``strategy=full``: all parameters are trained at the same rate."""

from __future__ import annotations

from dataclasses import dataclass

from ..optim.partition import Groups, Rule
from .base import Strategy


@dataclass(frozen=True)
class Full(Strategy):
    """Full fine-tuning."""

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return one rule for all parameters."""
        return ((".*", 1.0),)

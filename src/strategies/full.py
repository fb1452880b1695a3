"""``strategy=full``: everything moves at the same rate."""

from __future__ import annotations

from dataclasses import dataclass

from ..optim.partition import Groups, Rule
from .base import Strategy


@dataclass(frozen=True)
class Full(Strategy):
    """Full fine-tuning: the most freedom, and the most to lose when labels are few."""

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return one line for everything."""
        return ((".*", 1.0),)

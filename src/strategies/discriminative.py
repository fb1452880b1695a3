"""``strategy=discriminative``: everything moves, each group below the head slower than the one above it."""

from __future__ import annotations

from dataclasses import dataclass

from src.config import RATIO, knob
from src.engine.partition import Groups, Line
from src.strategies.base import Strategy


@dataclass(frozen=True)
class Discriminative(Strategy):
    """Discriminative learning rates (Howard and Ruder, ULMFiT, arXiv 1801.06146, section 3.2).

    Group ``g`` of ``G``, counted from the bottom, gets ``lr * decay ** (G - 1 - g)``: the head has the full rate.
    ULMFiT's factor 2.6 over five groups is ``decay = 1 / 2.6``; over many groups that freezes the bottom in all but
    name, so the default is milder.
    """

    decay: float = knob(0.9, RATIO, traced=True)

    def table(self, groups: Groups) -> tuple[Line, ...]:
        """Return one line a group, from the head down."""
        return tuple((name, self.decay**depth) for depth, (name, _) in enumerate(reversed(groups)))

"""``pretrain=mlm``: say which words are missing (masked language modelling)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from src.config import FRACTION, UNIT, knob
from src.errors import UserError
from src.models.base import Model
from src.objectives.base import Lesson, Pretraining, need_source
from src.objectives.text import Masked

if TYPE_CHECKING:
    from src.data.base import Transfer


@dataclass(frozen=True)
class Mlm(Pretraining):
    """Masked language modelling (Devlin et al., arXiv 1810.04805, section 3.1), masked anew in every update.

    ``rate``: share of the words that are to be said. Of these, ``mask`` are replaced by the mask and ``random`` by any
    word; the rest stays as it is.
    """

    rate: float = knob(0.15, FRACTION)
    mask: float = knob(0.8, UNIT)
    random: float = knob(0.1, UNIT)

    def lesson(self, model: Model, data: Transfer) -> Lesson:
        """Return the network with its head for missing words, and what is masked."""
        need_source("mlm", "masked", data, "data=docstrings, or data.modelling=masked of plain texts")
        objective = data.objective("masked")
        if isinstance(objective, Masked):
            shares = (self.mask, self.random, 1.0 - self.mask - self.random)
            objective = replace(objective, rate=self.rate, shares=shares)
        return super().lesson(model, data)._replace(objective=objective)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse shares that are more than all."""
        if self.mask + self.random > 1.0 + 1e-9:
            raise UserError(
                f"pretrain.mask + pretrain.random is {self.mask + self.random:g}; allowed: at most 1, the rest stays"
            )
        super().check(model, data, batch)

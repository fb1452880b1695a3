"""``pretrain=sop``: say whether two texts stand in their order (sentence-order prediction)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.config import knob
from src.models.base import Model
from src.objectives.base import Lesson, Pretraining
from src.objectives.pairs import ORDER, PairLabels, need_pairs

if TYPE_CHECKING:
    from src.data.base import Transfer


@dataclass(frozen=True)
class Sop(Pretraining):
    """Sentence-order prediction (Lan et al., arXiv 1909.11942, section 3.1) alone: no word is missing.

    ``pairs``: what it asks the data for, as ``data.pairs``.
    """

    pairs: str = knob("order", ORDER)

    def lesson(self, model: Model, data: Transfer) -> Lesson:
        """Return the network with BERT's head of pre-training, of which the pair's part learns."""
        need_pairs("sop", self.pairs, data)
        return super().lesson(model, data)._replace(objective=PairLabels())

"""``pretrain=nsp``: say whether the second text follows the first (next-sentence prediction)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.config import knob
from src.models.base import Model
from src.objectives.base import Lesson, Pretraining
from src.objectives.pairs import NEXT, PairLabels, need_pairs

if TYPE_CHECKING:
    from src.data.base import Transfer


@dataclass(frozen=True)
class Nsp(Pretraining):
    """Next-sentence prediction (Devlin et al., arXiv 1810.04805, section 3.1) alone: no word is missing.

    ``pairs``: what it asks the data for, as ``data.pairs``.
    """

    pairs: str = knob("next", NEXT)

    def lesson(self, model: Model, data: Transfer) -> Lesson:
        """Return the network with BERT's head of pre-training, of which the pair's part learns."""
        need_pairs("nsp", self.pairs, data)
        return super().lesson(model, data)._replace(objective=PairLabels())

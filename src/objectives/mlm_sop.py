"""``pretrain=mlm_sop``: say which words are missing, and whether two texts stand in their order."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.config import knob
from src.objectives.mlm import Mlm
from src.objectives.pairs import ORDER, need_pairs

if TYPE_CHECKING:
    from src.data.base import Transfer


@dataclass(frozen=True)
class MlmSop(Mlm):
    """Masked words and sentence-order prediction (Lan et al., arXiv 1909.11942, section 3.1), their losses added.

    ``pairs``: what it asks the data for, as ``data.pairs``. Words are masked as under :class:`~src.objectives.mlm.Mlm`.
    """

    pairs: str = knob("order", ORDER)

    def need(self, data: Transfer) -> None:
        """Refuse a source task without such pairs."""
        need_pairs("mlm_sop", self.pairs, data)

"""``pretrain=mlm_nsp``: say which words are missing, and whether the second text follows the first."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.config import knob
from src.objectives.mlm import Mlm
from src.objectives.pairs import NEXT, need_pairs

if TYPE_CHECKING:
    from src.data.base import Transfer


@dataclass(frozen=True)
class MlmNsp(Mlm):
    """Masked words and next-sentence prediction (Devlin et al., arXiv 1810.04805, section 3.1), their losses added.

    ``pairs``: what it asks the data for, as ``data.pairs``. Words are masked as under :class:`~src.objectives.mlm.Mlm`.
    """

    pairs: str = knob("next", NEXT)

    def need(self, data: Transfer) -> None:
        """Refuse a source task without such pairs."""
        need_pairs("mlm_nsp", self.pairs, data)

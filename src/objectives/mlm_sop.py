"""``pretrain=mlm_sop``: say which words are missing, and whether two texts stand in their order."""

from __future__ import annotations

from dataclasses import dataclass

from src.config import knob
from src.objectives.mlm import WithPairs
from src.objectives.pairs import ORDER


@dataclass(frozen=True)
class MlmSop(WithPairs):
    """Masked words and sentence-order prediction (Lan et al., arXiv 1909.11942, section 3.1)."""

    pairs: str = knob("order", ORDER)

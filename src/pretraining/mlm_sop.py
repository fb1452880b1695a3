"""``pretrain=mlm_sop``: say which words are missing, and whether two texts stand in their order."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import hparam
from .mlm import WithPairs
from .pairs import ORDER


@dataclass(frozen=True)
class MlmSop(WithPairs):
    """Masked words and sentence-order prediction (Lan et al., arXiv 1909.11942, section 3.1)."""

    pairs: str = hparam("order", ORDER)

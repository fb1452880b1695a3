"""``pretrain=mlm_sop``: predict masked tokens, and whether two texts are in their original order."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import hparam
from .mlm import MlmWithPairs
from .pairs import ORDER


@dataclass(frozen=True)
class MlmSop(MlmWithPairs):
    """Masked tokens and sentence-order prediction (Lan et al., arXiv 1909.11942, section 3.1)."""

    pairs: str = hparam("order", ORDER)

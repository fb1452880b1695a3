"""``pretrain=mlm_sop``: masked tokens and sentence-order prediction (Lan et al., arXiv 1909.11942, section 3.1)."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import hparam
from .mlm import MlmWithPairs
from .text import ORDER


@dataclass(frozen=True)
class MlmSop(MlmWithPairs):
    """Masked tokens and sentence-order prediction (Lan et al., arXiv 1909.11942, section 3.1)."""

    pairs: str = hparam("order", ORDER)

"""``pretrain=sop``: sentence-order prediction (Lan et al., arXiv 1909.11942, section 3.1) without masked tokens."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import hparam
from .text import ORDER, PairPretraining


@dataclass(frozen=True)
class Sop(PairPretraining):
    """Sentence-order prediction (Lan et al., arXiv 1909.11942, section 3.1) without masked tokens."""

    pairs: str = hparam("order", ORDER)

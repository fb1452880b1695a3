"""``pretrain=sop``: say whether two texts stand in their order (sentence-order prediction)."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import hparam
from .pairs import ORDER, OfPairs


@dataclass(frozen=True)
class Sop(OfPairs):
    """Sentence-order prediction (Lan et al., arXiv 1909.11942, section 3.1) alone."""

    pairs: str = hparam("order", ORDER)

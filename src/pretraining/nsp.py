"""``pretrain=nsp``: say whether the second text follows the first (next-sentence prediction)."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import hparam
from .pairs import NEXT, OfPairs


@dataclass(frozen=True)
class Nsp(OfPairs):
    """Next-sentence prediction (Devlin et al., arXiv 1810.04805, section 3.1) alone."""

    pairs: str = hparam("next", NEXT)

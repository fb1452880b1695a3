"""``pretrain=nsp``: predict whether the second text follows the first (next-sentence prediction)."""

from __future__ import annotations

from dataclasses import dataclass

from .text import PairPretraining


@dataclass(frozen=True)
class Nsp(PairPretraining):
    """Next-sentence prediction (Devlin et al., arXiv 1810.04805, section 3.1) without masked tokens."""

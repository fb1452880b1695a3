"""``pretrain=mlm_nsp``: predict masked tokens, and whether the second text follows the first."""

from __future__ import annotations

from dataclasses import dataclass

from .mlm import MlmWithPairs


@dataclass(frozen=True)
class MlmNsp(MlmWithPairs):
    """Masked tokens and next-sentence prediction (Devlin et al., arXiv 1810.04805, section 3.1)."""

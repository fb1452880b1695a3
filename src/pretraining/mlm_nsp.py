"""``pretrain=mlm_nsp``: say which words are missing, and whether the second text follows the first."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import hparam
from .mlm import WithPairs
from .pairs import NEXT


@dataclass(frozen=True)
class MlmNsp(WithPairs):
    """Masked words and next-sentence prediction (Devlin et al., arXiv 1810.04805, section 3.1)."""

    pairs: str = hparam("next", NEXT)

"""``strategy=top_k``: the highest blocks and the head are trained, the rest is frozen."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import NATURAL, hparam
from ..optim.partition import FROZEN, Groups, Rule
from .base import Strategy
from .blocks import check_num_blocks, group_roles


@dataclass(frozen=True)
class TopK(Strategy):
    """Partial fine-tuning from the top (He et al., arXiv 2111.06377, section 4.3; Lee et al., arXiv 1911.03090).

    ``blocks``: number of trained blocks, from the top; 0 trains the head only. Embeddings or stem are always frozen.
    """

    blocks: int = hparam(1, NATURAL)

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return one rule a trained group, from the head down, then one that freezes the rest."""
        _, blocks, top = group_roles(groups)
        check_num_blocks("blocks", self.blocks, blocks)
        trained = (*top, *reversed(blocks[len(blocks) - self.blocks :]))
        return (*((name, 1.0) for name in trained), (".*", FROZEN))

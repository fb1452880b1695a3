"""``strategy=top_k``: the highest blocks and the head move, the rest stays as pre-trained."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import NATURAL, hparam
from ..optim.partition import FROZEN, Groups, Rule
from .base import Strategy
from .layers import check_num_blocks, group_roles


@dataclass(frozen=True)
class TopK(Strategy):
    """Partial fine-tuning from the top (He et al., arXiv 2111.06377, section 4.3; Lee et al., arXiv 1911.03090).

    ``blocks``: how many blocks move, counted from the top; 0 leaves the head alone. Embeddings or stem stay frozen
    even where every block moves. Default: 1.
    """

    blocks: int = hparam(1, NATURAL)

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return one line a group that moves, from the head down, then: the rest does not.

        Raises:
            UserError: more blocks than the model has.
        """
        _, blocks, top = group_roles(groups)
        check_num_blocks("blocks", self.blocks, blocks)
        moving = (*top, *reversed(blocks[len(blocks) - self.blocks :]))
        return (*((name, 1.0) for name in moving), (".*", FROZEN))

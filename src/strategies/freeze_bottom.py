"""``strategy=freeze_bottom``: the lowest blocks are frozen, everything above them is trained."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import NATURAL, hparam
from ..optim.partition import FROZEN, Groups, Rule
from .base import Strategy
from .blocks import check_num_blocks, group_roles


@dataclass(frozen=True)
class FreezeBottom(Strategy):
    """Freeze the general features of the lower blocks (Yosinski et al., arXiv 1411.1792; Lee et al., 1911.03090).

    ``blocks``: number of frozen blocks; embeddings or stem are frozen with the first. 0 is full fine-tuning.
    """

    blocks: int = hparam(1, NATURAL)

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return one rule a frozen group, then one that trains the rest."""
        bottom, blocks, _ = group_roles(groups)
        check_num_blocks("blocks", self.blocks, blocks)
        frozen = (*bottom, *blocks[: self.blocks]) if self.blocks else ()
        return (*((name, FROZEN) for name in frozen), (".*", 1.0))

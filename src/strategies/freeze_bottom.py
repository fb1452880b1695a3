"""``strategy=freeze_bottom``: the lowest blocks stay as pre-trained, everything above them moves."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import NATURAL, hparam
from ..optim.partition import FROZEN, Groups, Rule
from .base import Strategy
from .layers import check_num_blocks, group_roles


@dataclass(frozen=True)
class FreezeBottom(Strategy):
    """Keep the general features, learn the special ones (Yosinski et al., arXiv 1411.1792; Lee et al., 1911.03090).

    ``blocks``: how many blocks are frozen, counted from the bottom; embeddings or stem are frozen with the first of
    them. 0 is full fine-tuning, all of them leaves the head. Default: 1.
    """

    blocks: int = hparam(1, NATURAL)

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return one line a frozen group, then: the rest moves.

        Raises:
            UserError: more blocks than the model has.
        """
        bottom, blocks, _ = group_roles(groups)
        check_num_blocks("blocks", self.blocks, blocks)
        frozen = (*bottom, *blocks[: self.blocks]) if self.blocks else ()
        return (*((name, FROZEN) for name in frozen), (".*", 1.0))

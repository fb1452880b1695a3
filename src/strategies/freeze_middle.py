"""``strategy=freeze_middle``: the lowest and the highest blocks are trained, the blocks between them are frozen."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import NATURAL, hparam
from ..errors import UserError
from ..optim.partition import FROZEN, Groups, Rule
from .base import Strategy
from .blocks import check_num_blocks, group_roles


@dataclass(frozen=True)
class FreezeMiddle(Strategy):
    """Adapt to new inputs at the bottom and to new labels at the top (arXiv 2210.11466 compares the two ends).

    ``bottom``: number of lowest blocks that are trained, embeddings or stem with the first (0 freezes these too).
    ``top``: number of highest blocks that are trained, besides the head.
    """

    bottom: int = hparam(1, NATURAL)
    top: int = hparam(1, NATURAL)

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return one rule a frozen group, then one that trains the rest."""
        bottom, blocks, _ = group_roles(groups)
        check_num_blocks("bottom", self.bottom, blocks)
        check_num_blocks("top", self.top, blocks)
        middle = blocks[self.bottom : len(blocks) - self.top]
        if not middle:
            raise UserError(
                f"strategy.bottom is {self.bottom} and strategy.top is {self.top}; allowed: together less than "
                f"{len(blocks)}, the number of the model's blocks, so that a middle is left to freeze"
            )
        frozen = middle if self.bottom else (*bottom, *middle)
        return (*((name, FROZEN) for name in frozen), (".*", 1.0))

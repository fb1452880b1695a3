"""``strategy=freeze_middle``: both ends of the network move, the blocks between them stay as pre-trained."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import NATURAL, hparam
from ..errors import UserError
from ..optim.partition import FROZEN, Groups, Rule
from .base import Strategy
from .layers import check_num_blocks, group_roles


@dataclass(frozen=True)
class FreezeMiddle(Strategy):
    """Adapt to new inputs at the bottom and to new labels at the top (the two ends that arXiv 2210.11466 compares).

    ``bottom``: how many of the lowest blocks move, embeddings or stem with the first of them (0 freezes those too);
    ``top``: how many of the highest blocks move, besides the head, which always does. Defaults: 1 and 1.
    """

    bottom: int = hparam(1, NATURAL)
    top: int = hparam(1, NATURAL)

    def table(self, groups: Groups) -> tuple[Rule, ...]:
        """Return one line a frozen group, then: the rest moves.

        Raises:
            UserError: more blocks than the model has, or none left between the two ends.
        """
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

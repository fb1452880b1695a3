"""``strategy=freeze_bottom``, ``freeze_middle`` and ``top_k``: some of the model's blocks are frozen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from ..config.hparams import NATURAL, hparam
from ..errors import UserError
from ..optim.partition import FROZEN, Groups, Rule
from .base import Strategy

BOTTOM = ("embeddings", "stem")  # names of a first group that is not a block
POOLER = "pooler"  # name of a group between the blocks and the head


class GroupRoles(NamedTuple):
    """The names of a model's groups by their role."""

    bottom: tuple[str, ...]  # embeddings or stem, if the model has such a group
    blocks: tuple[str, ...]  # from bottom to top
    top: tuple[str, ...]  # the head, then the pooler if there is one


def group_roles(groups: Groups) -> GroupRoles:
    """Return the names of a model's groups by their role."""
    *below, head = (name for name, _ in groups)
    pooler = (POOLER,) if POOLER in below else ()
    below = [name for name in below if name != POOLER]
    start = 1 if below and below[0] in BOTTOM else 0
    return GroupRoles(tuple(below[:start]), tuple(below[start:]), (head, *pooler))


def check_num_blocks(key: str, wanted: int, blocks: Sequence[str]) -> None:
    """Refuse a number of blocks that the model does not have."""
    if wanted > len(blocks):
        raise UserError(f"strategy.{key} is {wanted}; allowed: 0 to {len(blocks)}, the number of the model's blocks")


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

"""The roles of a model's groups, for the strategies that freeze some of its blocks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from ..errors import UserError
from ..optim.partition import Groups

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

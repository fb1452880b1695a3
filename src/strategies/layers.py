"""A model's groups by their role, and the learning-rate scales of layer-wise decay."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

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


def layer_scales(groups: int | Sequence[Any], decay: Any) -> list[Any]:
    """Return each group's learning-rate scale, bottom to top: ``[decay**(G-1), ..., decay, 1.0]``, as in timm and BEiT.

    Args:
        groups: the groups, embeddings and head included, or their number ``G``.
        decay: factor from a group to the one below it (``1 / xi`` in ULMFiT); may be a tracer.
    """
    count = groups if isinstance(groups, int) else len(groups)
    factor = float(decay) if isinstance(decay, int) else decay
    return [factor ** (count - 1 - group) for group in range(count)]

"""What strategies say of a model's groups: the blocks between what lies under them and the head, and falling rates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from ..errors import UserError
from ..optim.partition import Groups

UNDER = ("embeddings", "stem")  # names of a first group that is no block
OVER = ("pooler",)  # and of one between the blocks and the head


class Layers(NamedTuple):
    """The names of a model's groups by their part in it."""

    under: tuple[str, ...]  # embeddings or stem, where the model has a group of that name
    blocks: tuple[str, ...]  # from bottom to top
    top: tuple[str, ...]  # from the head down to what is no block


def layers(groups: Groups) -> Layers:
    """Return the names of a model's groups by their part in it."""
    *below, head = (name for name, _ in groups)
    over = tuple(name for name in below if name in OVER)
    below = [name for name in below if name not in OVER]
    cut = 1 if below and below[0] in UNDER else 0
    return Layers(tuple(below[:cut]), tuple(below[cut:]), (head, *over))


def check_blocks(key: str, wanted: int, blocks: Sequence[str]) -> None:
    """Refuse a number of blocks that the model does not have.

    Raises:
        UserError: ``wanted`` is more than there are.
    """
    if wanted > len(blocks):
        raise UserError(f"strategy.{key} is {wanted}; allowed: 0 to {len(blocks)}, the number of the model's blocks")


def layer_scales(groups: int | Sequence[Any], decay: Any) -> list[Any]:
    """Return each group's multiplier of the learning rate, bottom to top: ``[decay**(G-1), ..., decay, 1.0]``.

    Args:
        groups: the groups, embeddings and head among them, or their number ``G``.
        decay: factor from a group to the one below it (``1 / xi``); a tracer gives tracers.
    """
    count = groups if isinstance(groups, int) else len(groups)
    factor = float(decay) if isinstance(decay, int) else decay
    return [factor ** (count - 1 - group) for group in range(count)]

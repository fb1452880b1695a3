"""``strategy=frozen``: the trunk stays as pre-trained, the head moves (the reference recipe)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from src.engine.optimizers import Form
from src.engine.partition import FROZEN, Groups, Line
from src.strategies.base import Strategy


@dataclass(frozen=True)
class Frozen(Strategy):
    """Frozen trunk, in the form the reference recipe names: ``optax.multi_transform`` with ``set_to_zero``."""

    form: ClassVar[Form] = Form.multi_transform

    def table(self, groups: Groups) -> tuple[Line, ...]:
        """Return: the head moves, the rest does not."""
        return (("head", 1.0), (".*", FROZEN))

"""What a strategy is: an ordered table of patterns, made from the model's groups."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from src.engine.optimizers import Form
from src.engine.partition import Groups, Line


@dataclass(frozen=True)
class Strategy:
    """Base of every strategy. ``form`` says how the engine keeps frozen parameters still."""

    form: ClassVar[Form] = Form.split

    def table(self, groups: Groups) -> tuple[Line, ...]:
        """Return the lines ``(pattern, learning-rate multiplier or FROZEN)``; the first match decides.

        Args:
            groups: the model's groups from bottom to top, the head last.
        """
        raise TypeError(f"{type(self).__name__} does not make a table")

"""``strategy=chain_thaw``: chain-thaw (Felbo et al., DeepMoji, arXiv 1708.00524, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..optim.partition import FROZEN, Groups
from .base import Table
from .phases import EqualPhases


@dataclass(frozen=True)
class ChainThaw(EqualPhases):
    """Chain-thaw (Felbo et al., DeepMoji, arXiv 1708.00524, section 3.3).

    Until the last phase only one group is trained at a time, which limits overfitting: ``G`` groups make ``G + 1``
    phases. The paper runs each phase until the validation loss stops decreasing; a fixed number of updates makes the
    cost comparable with other strategies.
    """

    doing: ClassVar[str] = "thawing {alone}"

    def tables(self, groups: Groups) -> tuple[Table, ...]:
        """Return the phases: the head, each group below it from the bottom up, everything."""
        *below, head = (name for name, _ in groups)
        alone = [((name, 1.0), (".*", FROZEN)) for name in (head, *below)]
        return (*alone, ((".*", 1.0),))

"""``strategy=chain_thaw``: the head alone, then every other group alone from the bottom up, then everything."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import COUNT, hparam
from ..optim.partition import FROZEN, Groups
from .base import Strategy, Table
from .gradual import equal_phases


@dataclass(frozen=True)
class ChainThaw(Strategy):
    """Chain-thaw (Felbo et al., DeepMoji, arXiv 1708.00524, section 3.3).

    Until the last phase only one group is trained at a time, which limits overfitting. ``G`` groups make ``G + 1``
    phases; each but the last takes ``every`` updates (``None``: one epoch), the last takes the remaining ones. The
    paper runs each phase until the validation loss stops decreasing; a fixed number of updates makes the cost
    comparable with other strategies.
    """

    every: int | None = hparam(None, COUNT)

    def tables(self, groups: Groups) -> tuple[Table, ...]:
        """Return the phases: the head, each group below it from the bottom up, everything."""
        *below, head = (name for name, _ in groups)
        alone = [((name, 1.0), (".*", FROZEN)) for name in (head, *below)]
        return (*alone, ((".*", 1.0),))

    def phase_steps(self, phases: int, steps: int, epoch: int) -> tuple[int, ...]:
        """Return ``every`` updates for each phase but the last, which takes the remaining ones."""
        return equal_phases(self.every, phases, steps, epoch, f"thawing {phases - 1} groups")

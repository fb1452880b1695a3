"""``strategy=chain_thaw``: the head alone, then every other group alone from the bottom up, then everything."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import COUNT, hparam
from ..optim.partition import FROZEN, Groups
from .base import Strategy, Table
from .gradual import equal_lengths


@dataclass(frozen=True)
class ChainThaw(Strategy):
    """Chain-thaw (Felbo et al., DeepMoji, arXiv 1708.00524, section 3.3).

    Only one group moves at a time until the last phase, so that no phase has many parameters to overfit with. ``G``
    groups make ``G + 1`` phases; each but the last takes ``every`` updates (``null``, the default: one epoch), the
    last takes what is left. The paper runs each phase until validation stops getting better; a number of updates keeps
    the cost the same as that of other strategies.
    """

    every: int | None = hparam(None, COUNT)

    def tables(self, groups: Groups) -> tuple[Table, ...]:
        """Return the phases: the head, each group below it from the bottom up, everything."""
        *below, head = (name for name, _ in groups)
        alone = [((name, 1.0), (".*", FROZEN)) for name in (head, *below)]
        return (*alone, ((".*", 1.0),))

    def lengths(self, phases: int, steps: int, epoch: int) -> tuple[int, ...]:
        """Return ``every`` updates for each phase but the last, which takes what is left.

        Raises:
            UserError: the last phase would begin after the run has ended.
        """
        return equal_lengths(self.every, phases, steps, epoch, f"thawing {phases - 1} groups")

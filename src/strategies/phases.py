"""The base of the strategies whose phases have equal lengths."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.hparams import COUNT, hparam
from ..errors import UserError
from .base import Strategy


@dataclass(frozen=True)
class EqualPhases(Strategy):
    """Base of the strategies whose phases take ``every`` updates (``None``: an epoch), the last the remaining ones."""

    doing: ClassVar[str]  # what the phases do, for errors
    every: int | None = hparam(None, COUNT)

    def phase_steps(self, phases: int, steps: int, epoch: int) -> tuple[int, ...]:
        """Return ``every`` updates for each phase but the last; refuse a last phase without updates."""
        each = self.every or epoch
        least = each * (phases - 1) + 1
        if steps < least:
            given = self.every or f"null (an epoch, here {epoch})"
            doing = self.doing.format(all=phases, alone=phases - 1)
            raise UserError(
                f"strategy.every is {given}: {doing} groups needs at least {least} updates, finetune_steps is {steps}"
            )
        return (*[each] * (phases - 1), steps - each * (phases - 1))

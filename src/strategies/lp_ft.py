"""``strategy=lp_ft``: first the head alone, then everything from there."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import FRACTION, POSITIVE, hparam
from ..errors import UserError
from ..optim.partition import FROZEN, Groups
from .base import Strategy, Table


@dataclass(frozen=True)
class LpFt(Strategy):
    """Linear probing, then full fine-tuning (Kumar et al., arXiv 2202.10054).

    A head that does not fit yet distorts the features below it while both learn; a head that was probed first does
    less so, which shows on data unlike the target task's. Fine-tuning goes on from the probe's head, as in the paper,
    and the schedule restarts with it.

    ``probe_share`` of the updates, rounded, are the probe's (0.5; each phase gets at least one), at ``probe_rate``
    times ``lr_fine`` (1.0; a probe usually takes a larger rate than fine-tuning).
    """

    probe_share: float = hparam(0.5, FRACTION)
    probe_rate: float = hparam(1.0, POSITIVE, traced=True)

    def tables(self, groups: Groups) -> tuple[Table, ...]:
        """Return two phases: the head, everything."""
        return ((groups[-1][0], self.probe_rate), (".*", FROZEN)), ((".*", 1.0),)

    def lengths(self, phases: int, steps: int, epoch: int) -> tuple[int, ...]:
        """Return the updates of the probe and those of fine-tuning.

        Raises:
            UserError: too few updates for two phases.
        """
        if steps < 2:
            raise UserError(f"finetune_steps is {steps}; allowed with strategy=lp_ft: at least 2, one for each phase")
        probe = min(max(round(self.probe_share * steps), 1), steps - 1)
        return probe, steps - probe

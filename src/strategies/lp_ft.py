"""``strategy=lp_ft``: linear probing, then full fine-tuning (Kumar et al., arXiv 2202.10054)."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import FRACTION, POSITIVE, hparam
from ..errors import UserError
from ..optim.partition import FROZEN, Groups
from .base import Strategy, Table


@dataclass(frozen=True)
class LpFt(Strategy):
    """Linear probing, then full fine-tuning (Kumar et al., arXiv 2202.10054).

    An untrained head distorts the features below it while both are trained; a probed head does so less, which improves
    accuracy out of distribution. ``probe_fraction``: share of the updates for the probe, rounded; each phase gets at
    least one, and the schedule restarts. ``probe_lr_scale``: the probe's learning rate over ``lr_fine``.
    """

    probe_fraction: float = hparam(0.5, FRACTION)
    probe_lr_scale: float = hparam(1.0, POSITIVE, traced=True)

    def tables(self, groups: Groups) -> tuple[Table, ...]:
        """Return two phases: the head, then all parameters."""
        return ((groups[-1][0], self.probe_lr_scale), (".*", FROZEN)), ((".*", 1.0),)

    def phase_steps(self, phases: int, steps: int, epoch: int) -> tuple[int, ...]:
        """Return the updates of the probe and those of fine-tuning."""
        if steps < 2:
            raise UserError(f"finetune_steps is {steps}; allowed with strategy=lp_ft: at least 2, one for each phase")
        probe = min(max(round(self.probe_fraction * steps), 1), steps - 1)
        return probe, steps - probe

"""``strategy=gradual``, ``chain_thaw`` and ``lp_ft``: fine-tuning in phases that train other parameters."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.hparams import COUNT, FRACTION, POSITIVE, RATIO, hparam
from ..errors import UserError
from ..optim.partition import FROZEN, Groups
from .base import Strategy, Table
from .discriminative import layer_scales


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


@dataclass(frozen=True)
class Gradual(EqualPhases):
    """Gradual unfreezing (Howard and Ruder, ULMFiT, arXiv 1801.06146, section 3.3).

    In phase ``j``, counted from 0, the ``j + 1`` highest groups are trained and the rest is frozen. ``decay`` adds
    discriminative learning rates, as in ULMFiT (``1 / 2.6``): a group's rate is ``lr * decay ** (number of groups above
    it)``.

    Each phase is compiled separately; its backward pass ends at its lowest trained group. The optimizer state of groups
    that were trained before is kept, that of new groups starts fresh. The schedule restarts with each phase, as in
    ULMFiT's script and in AllenNLP, so each new group has a warm-up.
    """

    doing: ClassVar[str] = "unfreezing {all}"
    decay: float = hparam(1.0, RATIO, traced=True)

    def tables(self, groups: Groups) -> tuple[Table, ...]:
        """Return one phase a group, from the head down; each adds a rule to the one before."""
        scales = layer_scales(groups, self.decay)
        lines = [(name, scale) for (name, _), scale in zip(groups, scales, strict=True)][::-1]
        phases = [(*lines[:count], (".*", FROZEN)) for count in range(1, len(lines))]
        return (*phases, tuple(lines))


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

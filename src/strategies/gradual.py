"""``strategy=gradual``: one group after the other begins to move, the head first."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import COUNT, RATIO, hparam
from ..errors import UserError
from ..optim.partition import FROZEN, Groups
from .base import Strategy, Table
from .layers import layer_scales


@dataclass(frozen=True)
class Gradual(Strategy):
    """Gradual unfreezing (Howard and Ruder, ULMFiT, arXiv 1801.06146, section 3.3).

    In phase ``j``, counted from 0, the ``j + 1`` highest groups move and the rest is frozen; in the last phase
    everything moves. Each phase but the last takes ``every`` updates (``null``, the default: one epoch, as in the
    paper), the last takes what is left. ``decay`` joins discriminative rates to it, as ULMFiT does: a group's rate is
    ``lr * decay ** (groups between it and the top, the head counted)``. The default 1.0 gives all the same rate;
    ULMFiT's is ``1 / 2.6``.

    Each phase is a stage of its own, compiled for what moves in it: a phase costs the backward pass only down to its
    lowest group. The optimizer's state of what already moved is kept and that of what joins starts fresh. The schedule
    restarts with each phase, as in ULMFiT's script and in AllenNLP: a warm-up protects each newcomer, and rows of the
    record show the rate go up again.
    """

    every: int | None = hparam(None, COUNT)
    decay: float = hparam(1.0, RATIO, traced=True)

    def tables(self, groups: Groups) -> tuple[Table, ...]:
        """Return one phase a group, from the head down; each adds a line to the one before."""
        scales = layer_scales(groups, self.decay)
        lines = [(name, scale) for (name, _), scale in zip(groups, scales, strict=True)][::-1]
        phases = [(*lines[:count], (".*", FROZEN)) for count in range(1, len(lines))]
        return (*phases, tuple(lines))

    def lengths(self, phases: int, steps: int, epoch: int) -> tuple[int, ...]:
        """Return ``every`` updates for each phase but the last, which takes what is left.

        Raises:
            UserError: the last phase would begin after the run has ended.
        """
        return equal_lengths(self.every, phases, steps, epoch, f"unfreezing {phases} groups")


def equal_lengths(every: int | None, phases: int, steps: int, epoch: int, doing: str) -> tuple[int, ...]:
    """Return ``every`` updates (``None``: an epoch) for each phase but the last, which takes what is left.

    Raises:
        UserError: ``doing`` that takes more updates than there are.
    """
    each = every or epoch
    least = each * (phases - 1) + 1
    if steps < least:
        given = every if every else f"null (an epoch, here {epoch})"
        raise UserError(f"strategy.every is {given}: {doing} needs at least {least} updates, finetune_steps is {steps}")
    return (*[each] * (phases - 1), steps - each * (phases - 1))

"""``strategy=gradual``: gradual unfreezing (Howard and Ruder, ULMFiT, arXiv 1801.06146, section 3.3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.hparams import RATIO, hparam
from ..optim.partition import FROZEN, Groups
from .base import Table
from .discriminative import layer_scales
from .phases import EqualPhases


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

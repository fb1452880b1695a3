"""``retention=isolate``: no parameter of the pre-trained network is trained, so that nothing is forgotten."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ..config.schema import option_names
from ..errors import UserError, listed
from .base import FinetuneSetup, Retention

ISOLATING = ("lora", "dora", "ia3", "adapter", "prompt", "linear_probe", "frozen")  # strategies


@dataclass(frozen=True)
class Isolate(Retention):
    """Checks that only the head and added parameters are trained; without these, the source's accuracy is kept."""

    isolates: ClassVar[bool] = True

    def check(self, setup: FinetuneSetup) -> None:
        """Refuse a strategy that changes a parameter, or a batch statistic, of the pre-trained network."""
        added, head = setup.adapter_params, setup.head
        shared = sorted(p for p in setup.trainable if p.rpartition("/")[2] not in added and p not in head)
        if shared:
            suitable = [name for name in ISOLATING if name in option_names("strategy")]
            raise UserError(
                f"retention.name is 'isolate', and the strategy moves {listed(shared, 4)} of the pre-trained network; "
                f"allowed: strategies that move only the head or what they add, such as {listed(suitable)}"
            )

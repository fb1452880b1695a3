"""``retention=isolate``: nothing of the pre-trained network moves, so that nothing can be forgotten."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from ..config.schema import option_names
from ..errors import UserError, listed
from ..objectives.base import Objective
from .base import Retention

ISOLATING = ("lora", "dora", "ia3", "adapter", "prompt", "linear_probe", "frozen")


@dataclass(frozen=True)
class Isolate(Retention):
    """A promise that is checked: what moves is the head and what the strategy added, nothing else.

    The source task is then evaluated with its own head and without what was added: the very network that learned it,
    so its accuracy is the same to the bit.
    """

    isolates: ClassVar[bool] = True

    def check(
        self,
        moving: Collection[str] = (),
        adapter_params: Collection[str] = (),
        head: Collection[str] = (),
        has_source: bool = True,
        pretrained: bool = True,
        objective: Objective | None = None,
    ) -> None:
        """Refuse a strategy that moves a parameter, or a batch statistic, of the pre-trained network."""
        shared = sorted(path for path in moving if path.rpartition("/")[2] not in adapter_params and path not in head)
        if shared:
            suitable = [name for name in ISOLATING if name in option_names("strategy")]
            raise UserError(
                f"retention.name is 'isolate', and the strategy moves {listed(shared, 4)} of the pre-trained network; "
                f"allowed: strategies that move only the head or what they add, such as {listed(suitable)}"
            )

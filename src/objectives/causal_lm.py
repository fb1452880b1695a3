"""``pretrain=causal_lm``: say each next word (causal language modelling)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.models.base import Model
from src.objectives.base import Lesson, Pretraining, need_source

if TYPE_CHECKING:
    from src.data.base import Transfer


@dataclass(frozen=True)
class CausalLm(Pretraining):
    """Causal language modelling (Radford et al. 2018, "Improving language understanding", eq. 1)."""

    def lesson(self, model: Model, data: Transfer) -> Lesson:
        """Return the network with its head for the next word."""
        need_source("causal_lm", "causal", data, "data=plain_text with data.objective=causal")
        return super().lesson(model, data)

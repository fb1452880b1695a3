"""``pretrain=causal_lm``: say each next word (causal language modelling)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..models.base import Model
from .base import Pretraining, PretrainTask, need_source

if TYPE_CHECKING:
    from ..data.base import Transfer


@dataclass(frozen=True)
class CausalLm(Pretraining):
    """Causal language modelling (Radford et al. 2018, "Improving language understanding", eq. 1)."""

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return the network with its head for the next word."""
        need_source("causal_lm", "causal", data, "data=plain_text with data.objective=causal")
        return super().pretrain_task(model, data)

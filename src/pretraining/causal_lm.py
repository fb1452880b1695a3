"""``pretrain=causal_lm``: predict the next token (causal language modelling)."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.base import Transfer
from ..models.base import Model
from .base import Pretraining, PretrainTask
from .text import need_source


@dataclass(frozen=True)
class CausalLm(Pretraining):
    """Causal language modelling (Radford et al. 2018, "Improving language understanding", eq. 1)."""

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return the network with a language-modelling head."""
        need_source("causal_lm", "causal", data, "data=plain_text with data.objective=causal")
        return super().pretrain_task(model, data)

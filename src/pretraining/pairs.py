"""Options of ``pretrain`` that learn from pairs of sentences."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..config.hparams import Check, hparam
from ..config.schema import option_name
from ..errors import UserError
from ..models.base import Model
from .base import Pretraining, PretrainTask

if TYPE_CHECKING:
    from ..data.base import Transfer
from ..objectives.pairs import PairLabels

# What an option of `pretrain` takes of its own setting, from which `data.pairs` follows.
NEXT = Check("next", lambda v: v == "next")


ORDER = Check("order", lambda v: v == "order")


@dataclass(frozen=True)
class OfPairs(Pretraining):
    """Base of the options that learn pairs alone: no word is missing.

    ``pairs``: what the data is asked for, as ``data.pairs``.
    """

    pairs: str = hparam("next", NEXT)

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return the network with BERT's head of pre-training, of which the pair's part learns."""
        need_pairs(option_name(self), self.pairs, data)
        return super().pretrain_task(model, data)._replace(objective=PairLabels())


def need_pairs(option: str, pairs: str, data: Transfer) -> None:
    """Refuse data whose source task is none of the pairs that an option of ``pretrain`` learns."""
    found = getattr(data, "pairs", None)
    if not data.source or found != pairs:
        has = f"data.pairs is {found}" if found and data.source else "the data has none"
        raise UserError(
            f"pretrain={option} learns from pairs of sentences, and {has}; allowed: data=docstrings or data=plain_text "
            f"with data.pairs={pairs}, which follows from pretrain={option} where it is not set"
        )

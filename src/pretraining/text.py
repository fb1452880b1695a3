"""What the options of ``pretrain`` for texts share: checks of the source task, and pairs of sentences."""

from __future__ import annotations

from dataclasses import dataclass

from ..config.hparams import Check, hparam
from ..config.schema import option_name
from ..data.base import Transfer
from ..errors import UserError
from ..models.base import Model
from ..objectives.pairs import PairLabels
from .base import Pretraining, PretrainTask

# Each option allows one value of its `pairs`, which data.pairs follows.
NEXT = Check("next", lambda v: v == "next")
ORDER = Check("order", lambda v: v == "order")


@dataclass(frozen=True)
class PairPretraining(Pretraining):
    """Base of the options that learn pairs only. ``pairs``: the value of ``data.pairs``."""

    pairs: str = hparam("next", NEXT)

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return the network with BERT's pre-training head, of which only the pair's part is trained."""
        need_pairs(option_name(self), self.pairs, data)
        return super().pretrain_task(model, data)._replace(objective=PairLabels())


def need_source(option: str, kind: str, data: Transfer, allowed: str) -> None:
    """Refuse data whose source task is of another kind than an option of ``pretrain`` needs."""
    if data.source_kind != kind or not data.source:
        has = f"is {data.source_kind}" if data.source else "is none"
        raise UserError(f"pretrain={option} learns {kind} words, and the data's source task {has}; allowed: {allowed}")


def need_pairs(option: str, pairs: str, data: Transfer) -> None:
    """Refuse data whose source task has other pairs than an option of ``pretrain`` needs, or none."""
    found = getattr(data, "pairs", None)
    if not data.source or found != pairs:
        has = f"data.pairs is {found}" if found and data.source else "the data has none"
        raise UserError(
            f"pretrain={option} learns from pairs of sentences, and {has}; allowed: data=docstrings or data=plain_text "
            f"with data.pairs={pairs}, which follows from pretrain={option} where it is not set"
        )

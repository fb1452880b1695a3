"""``pretrain=checkpoint``: start from a checkpoint's files instead of training on the source task."""

from __future__ import annotations

from dataclasses import dataclass

from ..data.base import Transfer
from ..errors import UserError
from ..models.base import Model
from ..objectives.kinds import for_kind
from .base import Pretraining, PretrainTask


@dataclass(frozen=True)
class Checkpoint(Pretraining):
    """The parameters are read from ``model.checkpoint``; the data's source task is not used."""

    trains = False

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return the target task's network and objective: what the files are read into."""
        return PretrainTask(model, data.outputs, for_kind(data.kind, data.vocabulary), new_head=False)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse a model without a checkpoint."""
        if not model.has_checkpoint:
            raise UserError("pretrain=checkpoint begins with files; allowed: with model.checkpoint=<folder or name>")

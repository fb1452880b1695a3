"""``pretrain=checkpoint``: begin with what a checkpoint's files hold, and learn no source task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ..errors import UserError
from ..models.base import Model
from ..objectives.kinds import for_kind
from .base import Pretraining, PretrainTask

if TYPE_CHECKING:
    from ..data.base import Transfer


@dataclass(frozen=True)
class Checkpoint(Pretraining):
    """The files of ``model.checkpoint`` are the pre-training; the source task, where there is one, is left aside."""

    trains = False

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return the target task's network and objective: what the files are read into."""
        return PretrainTask(model, data.outputs, for_kind(data.kind, data.vocabulary), new_head=False)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse a model without files."""
        if not model.has_checkpoint:
            raise UserError("pretrain=checkpoint begins with files; allowed: with model.checkpoint=<folder or name>")

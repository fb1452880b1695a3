"""``pretrain=checkpoint``: begin with what a checkpoint's files hold, and learn no source task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.errors import UserError
from src.models.base import Model
from src.objectives.base import Pretraining

if TYPE_CHECKING:
    from src.data.base import Transfer


@dataclass(frozen=True)
class Checkpoint(Pretraining):
    """The files of ``model.checkpoint`` are the pre-training; the source task, where there is one, is left aside."""

    trains = False

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse a model without files."""
        if not model.has_checkpoint:
            raise UserError("pretrain=checkpoint begins with files; allowed: with model.checkpoint=<folder or name>")

"""``pretrain=checkpoint``: begin with what a checkpoint's files hold, and learn no source task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from src.errors import UserError
from src.models.base import Model
from src.objectives.base import Lesson, Pretraining

if TYPE_CHECKING:
    from src.data.base import Transfer


@dataclass(frozen=True)
class Checkpoint(Pretraining):
    """The files of ``model.checkpoint`` are the pre-training; the source task, where there is one, is left aside."""

    trains = False

    def lesson(self, model: Model, data: Transfer) -> Lesson:
        """Return the target task's network and objective: what the files are read into."""
        return Lesson(model, data.outputs, data.objective(data.kind), new_head=False)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse a model without files."""
        if not model.has_checkpoint:
            raise UserError("pretrain=checkpoint begins with files; allowed: with model.checkpoint=<folder or name>")

"""What an option of the group ``pretrain`` says."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

from ..config.hparams import COUNT, hparam
from ..errors import UserError
from ..models.base import Model
from ..optim.optimizers import Optimizer
from ..optim.schedules import Schedule

if TYPE_CHECKING:
    from ..data.base import Transfer
from ..objectives.base import Objective
from ..objectives.kinds import for_kind


class PretrainTask(NamedTuple):
    """What pre-training is: a network, its outputs, what it minimises, and whether its head is of no use afterwards."""

    model: Model
    outputs: int
    objective: Objective
    new_head: bool


@dataclass(frozen=True)
class Pretraining:
    """Base of the options: with its own optimizer, schedule and batches, so that fine-tuning's leave it alone.

    ``batch_size``: rows of an update, ``None`` for as many as fine-tuning takes.
    """

    trains: ClassVar[bool] = True  # whether there is any
    optimizer: Optimizer = hparam()
    schedule: Schedule = hparam()
    batch_size: int | None = hparam(None, COUNT)

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return what is learned: by default the source task as the data has it.

        Raises:
            UserError: the data or the model is not of the kind that this takes.
        """
        kind = data.source_kind
        return PretrainTask(model.with_head(kind), data.source_outputs, for_kind(kind, data.vocabulary), data.new_head)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse what this cannot learn, before anything is trained.

        Args:
            model: as configured.
            data: both tasks.
            batch: rows of an update.
        """
        self.pretrain_task(model, data)

    def warnings(self, rows: Sequence[Mapping[str, Any]], epoch: int, batch: int) -> list[str]:
        """Return what the logged rows warn of, a sentence each.

        Args:
            rows: of pre-training.
            epoch: updates in which every row of the data is seen once.
            batch: rows of an update.
        """
        return []

    def stability(self, rows: Sequence[Mapping[str, Any]], epoch: int, batch: int) -> dict[str, float]:
        """Return the numbers that :meth:`warnings` is about, by name; the arguments are the same."""
        return {}

    def evaluate_features(self, features: Features, data: Transfer) -> dict[str, float]:
        """Return what the features below the head are worth, by name, measured on the source task's test part.

        Args:
            features: of rows, as pre-training left them and as they were at first.
            data: both tasks.
        """
        return {}

    def feature_eval_every(self) -> int | None:
        """Return the updates between two calls of :meth:`evaluate_features_during`; ``None``: there are none."""
        return None

    def evaluate_features_during(self, features: Features, data: Transfer, step: int) -> dict[str, float]:
        """Return what is measured on the way, by its name in the row of that step; the test part is not looked at.

        Args:
            features: of rows, as they are by now and as they were at first.
            data: both tasks.
            step: updates made so far.
        """
        return {}

    def feature_eval_settings(self) -> dict[str, Any]:
        """Return what :meth:`evaluate_features` and :meth:`evaluate_features_during` depend on, as JSON can say it: a kept stage is named by it."""
        return {}


class Features(NamedTuple):
    """What lies below a network's head, computed of any rows.

    ``embedded`` is what the head makes of it. ``known`` is a place for what has been measured of what pre-training does
    not change; all lanes share it.
    """

    learned: Callable[[Any], Any]
    initial: Callable[[Any], Any]
    embedded: Callable[[Any], Any]
    known: dict[Any, dict[str, float]]


def need_source(option: str, kind: str, data: Transfer, words: str) -> None:
    """Refuse data whose source task is of another kind than an option of ``pretrain`` learns."""
    if data.source_kind != kind or not data.source:
        has = f"is {data.source_kind}" if data.source else "is none"
        raise UserError(f"pretrain={option} learns {kind} words, and the data's source task {has}; allowed: {words}")

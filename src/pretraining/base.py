"""The base class of the options of ``pretrain``."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

from ..config.hparams import COUNT, hparam
from ..data.base import Transfer
from ..models.base import Model
from ..objectives.base import Objective
from ..objectives.kinds import for_kind
from ..optim.optimizers import Optimizer
from ..optim.schedules import Schedule


class PretrainTask(NamedTuple):
    """What is trained: a network, the units of its head, and its objective."""

    model: Model
    outputs: int
    objective: Objective
    new_head: bool  # whether fine-tuning replaces the head


class Features(NamedTuple):
    """Functions from rows to features below the head and to embeddings (the head's outputs)."""

    learned: Callable[[Any], Any]  # features of the network as trained so far
    initial: Callable[[Any], Any]  # features of the untrained network
    embedded: Callable[[Any], Any]  # embeddings of the network as trained so far
    cache: dict[Any, dict[str, float]]  # metrics that do not depend on training, shared by all runs of a sweep


@dataclass(frozen=True)
class Pretraining:
    """Base of the options of ``pretrain``, each with its own optimizer, schedule and batch size.

    ``batch_size``: rows an update; ``None`` takes the batch size of fine-tuning.
    """

    trains: ClassVar[bool] = True  # whether anything is trained
    optimizer: Optimizer = hparam()
    schedule: Schedule = hparam()
    batch_size: int | None = hparam(None, COUNT)

    def pretrain_task(self, model: Model, data: Transfer) -> PretrainTask:
        """Return what is trained; the default is the data's source task.

        Raises:
            UserError: the data or the model is of a kind that this option does not support.
        """
        kind = data.source_kind
        return PretrainTask(model.with_head(kind), data.source_outputs, for_kind(kind, data.vocabulary), data.new_head)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse what this option does not support, before anything is trained.

        Args:
            model: as configured.
            data: both tasks.
            batch: rows of an update.
        """
        self.pretrain_task(model, data)

    def warnings(self, rows: Sequence[Mapping[str, Any]], epoch: int, batch: int) -> list[str]:
        """Return warnings about a run, a sentence each.

        Args:
            rows: the logged rows of pre-training.
            epoch: updates of one pass over the data.
            batch: rows of an update.
        """
        return []

    def stability(self, rows: Sequence[Mapping[str, Any]], epoch: int, batch: int) -> dict[str, float]:
        """Return the numbers that :meth:`warnings` is based on, by name; the arguments are the same."""
        return {}

    def evaluate_features(self, features: Features, data: Transfer) -> dict[str, float]:
        """Return metrics of the features on the source task's test part, computed once after training."""
        return {}

    def feature_eval_every(self) -> int | None:
        """Return the updates between two calls of :meth:`evaluate_features_during`; ``None``: it is not called."""
        return None

    def evaluate_features_during(self, features: Features, data: Transfer, step: int) -> dict[str, float]:
        """Return metrics of the features after ``step`` updates, computed without the source task's test part."""
        return {}

    def feature_eval_settings(self) -> dict[str, Any]:
        """Return the settings of both evaluations, JSON-compatible; they are part of a cached stage's key."""
        return {}

"""What options of ``pretrain`` have in common that learn from images without their labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from src.config import COUNT, POSITIVE, knob, option_name
from src.errors import UserError
from src.models.base import Model
from src.objectives.base import Features, Pretraining
from src.results.neighbours import knn_predict

if TYPE_CHECKING:
    from src.data.base import Transfer


def no_labels() -> UserError:
    """Return what a loss of images without labels says when it is asked for that of labels."""
    return UserError(
        "retention learns rows of the source task again by their labels, which this pre-training did not learn; "
        "allowed: a retention without rehearsal, or pretrain=supervised"
    )


@dataclass(frozen=True)
class FromImages(Pretraining):
    """Base of these. ``neighbours``, ``neighbours_temperature``: of the votes that say what the features are worth."""

    neighbours: int = knob(20, COUNT)
    neighbours_temperature: float = knob(0.07, POSITIVE)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse data that is no images."""
        rows = (data.source or data.target)["train"].x
        if rows.ndim != 4:
            raise UserError(
                f"pretrain={option_name(self)} learns from images, and the data is rows of shape {rows.shape[1:]}; "
                "allowed: data=cifar10, data=image_folder, or data.images=true of digits and mnist"
            )
        super().check(model, data, batch)

    def worth(self, features: Features, data: Transfer) -> dict[str, float]:
        """Return the accuracy of nearest neighbours by features, with those of an untrained network and of pixels."""
        bank, asked = data.source["train"], data.source["test"]
        classes = int(max(bank.y.max(), asked.y.max())) + 1

        def accuracy(of: Callable[[Any], Any]) -> float:
            votes = knn_predict(of(bank.x), bank.y, of(asked.x), self.neighbours, self.neighbours_temperature, classes)
            return float(np.mean(np.asarray(votes) == asked.y))

        pixels = accuracy(lambda x: np.asarray(x, np.float32).reshape(len(x), -1) / 255.0)
        return {
            "source_test_knn": accuracy(features.learned),
            "source_test_knn_random": accuracy(features.initial),
            "source_test_knn_pixels": pixels,
        }

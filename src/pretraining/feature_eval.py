"""Evaluation of image features on labels: nearest neighbours and a linear probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..config.hparams import COUNT, POSITIVE, hparam
from ..config.schema import option_name
from ..data.base import Transfer
from ..errors import UserError
from ..metrics.probes import accuracy, fit_probe, knn_predict, linear_probe
from ..models.base import Model
from ..types import Split
from .base import Features, Pretraining

HELD_OUT = 5  # without a validation part, every fifth training row is held out


class EvalSplits(NamedTuple):
    """The rows of an evaluation."""

    bank: Split  # the classifiers learn from these
    choose: Split | None  # these choose the probe's penalty; None: the penalty is as set
    test: Split  # the accuracies are of these


@dataclass(frozen=True)
class ImagePretraining(Pretraining):
    """Base of the options that learn from images without labels and evaluate the features.

    ``knn_k``, ``knn_temperature``: of the nearest neighbours (:func:`knn_predict`). ``eval_every``: updates between two
    evaluations during training, a multiple of ``log_every``; ``None`` evaluates at the end only. ``probe_rows``: the
    most training rows of the linear probe; ``None``: all. ``probe_penalty``: the probe's penalty during training, and
    at the end if the source task has no validation part to choose one by.
    """

    knn_k: int = hparam(20, COUNT)
    knn_temperature: float = hparam(0.07, POSITIVE)
    eval_every: int | None = hparam(None, COUNT)
    probe_rows: int | None = hparam(5000, COUNT)
    probe_penalty: float = hparam(1e-3, POSITIVE)

    def check(self, model: Model, data: Transfer, batch: int) -> None:
        """Refuse data other than images."""
        rows = (data.source or data.target)["train"].x
        if rows.ndim != 4:
            raise UserError(
                f"pretrain={option_name(self)} learns from images, and the data is rows of shape {rows.shape[1:]}; "
                "allowed: data=cifar10, data=image_folder, or data.images=true of digits and mnist"
            )
        super().check(model, data, batch)

    def feature_eval_settings(self) -> dict[str, Any]:
        """Return these settings."""
        trained = {f.name for f in fields(Pretraining)}
        return {f.name: getattr(self, f.name) for f in fields(ImagePretraining) if f.name not in trained}

    def feature_eval_every(self) -> int | None:
        """Return the setting."""
        return self.eval_every

    def evaluate_features(self, features: Features, data: Transfer) -> dict[str, float]:
        """Return the accuracies on the test part by the features, by untrained ones (``_random``) and by pixels."""
        splits = EvalSplits(data.source["train"], data.source.get("val"), data.source["test"])
        found = {f"source_test_{name}": value for name, value in self.scores(features.learned, splits, data).items()}
        for suffix, function in (("random", features.initial), ("pixels", pixels)):
            baseline = self.cached_scores(features, function, function, splits, data)
            found |= {f"source_test_{name}_{suffix}": value for name, value in baseline.items()}
        return found

    def evaluate_features_during(self, features: Features, data: Transfer, step: int) -> dict[str, float]:
        """Return the accuracies on :func:`validation_splits`, before the first update also those by pixels."""
        splits = validation_splits(data)
        found = self.scores(features.learned, splits, data)
        if step > 0:
            return found
        baseline = self.cached_scores(features, "pixels of the validation rows", pixels, splits, data)
        return found | {f"{name}_pixels": value for name, value in baseline.items()}

    def cached_scores(
        self, features: Features, key: Any, function: Callable[[Any], Any], splits: EvalSplits, data: Transfer
    ) -> dict[str, float]:
        """Return :meth:`scores` of features that training does not change, computed once for all runs."""
        if key not in features.cache:
            features.cache[key] = self.scores(function, splits, data)
        return features.cache[key]

    def scores(self, function: Callable[[Any], Any], splits: EvalSplits, data: Transfer) -> dict[str, float]:
        """Return the accuracy of ``knn`` and of ``probe`` by some features; nothing if they are not finite."""
        if data.source_kind != "classification":
            return {}
        bank, test = np.asarray(function(splits.bank.x)), np.asarray(function(splits.test.x))
        if not (np.isfinite(bank).all() and np.isfinite(test).all()):
            return {}
        vote = (self.knn_k, self.knn_temperature, data.source_outputs)
        hits = np.asarray(knn_predict(bank, splits.bank.y, test, *vote)) == splits.test.y
        return {"knn": float(np.mean(hits)), "probe": self.probe(function, splits, bank, test)}

    def probe(self, function: Callable[[Any], Any], splits: EvalSplits, bank: Any, test: Any) -> float:
        """Return the accuracy of a linear classifier of :func:`scaled` features."""
        few = bank[: self.probe_rows]
        train = (scaled(few, few), splits.bank.y[: self.probe_rows])
        tested = (scaled(few, test), splits.test.y)
        if splits.choose is None:
            return accuracy(fit_probe(*train, self.probe_penalty), *tested)
        chosen = (scaled(few, np.asarray(function(splits.choose.x))), splits.choose.y)
        return linear_probe(train, chosen, tested)["test_accuracy"]


def validation_splits(data: Transfer) -> EvalSplits:
    """Return the rows of evaluations during training: the validation part, else every fifth training row."""
    train, val = data.source["train"], data.source.get("val")
    if val is not None:
        return EvalSplits(train, None, val)  # rows that choose a penalty would overestimate its accuracy
    held = np.arange(len(train.x)) % HELD_OUT == HELD_OUT - 1
    return EvalSplits(type(train)(train.x[~held], train.y[~held]), None, type(train)(train.x[held], train.y[held]))


def pixels(x: Any) -> Float[np.ndarray, "N D"]:
    """Return flattened images, from 0 to 1."""
    return np.asarray(x, np.float32).reshape(len(x), -1) / 255.0


def scaled(bank: Float[np.ndarray, "N D"], x: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "M D"]:
    """Return features minus the bank's mean, over their overall deviation, so that penalties have one scale."""
    bank, x = np.asarray(bank, np.float64), np.asarray(x, np.float64)
    centre = bank.mean(axis=0)
    deviation = float(np.sqrt(np.mean(np.square(bank - centre))))
    return (x - centre) / (deviation or 1.0)

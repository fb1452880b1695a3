"""What features are worth on labels that they were not learned from: nearest neighbours and a linear probe."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..config.hparams import COUNT, POSITIVE, hparam
from ..metrics.knn import knn_predict
from ..metrics.linear_probe import fit_probe, linear_probe, scores
from .base import Features, Pretraining

if TYPE_CHECKING:
    from ..data.base import Transfer
    from ..types import Split

STEPS = 300  # of the probe's fit: the last digits of its optimum would cost minutes, of pixels, and move no accuracy
HELD_OUT = 5  # of so many training rows one is asked about on the way, where there is no validation part


class Asked(NamedTuple):
    """What is measured on: the rows to learn from, those that choose a penalty, and those that are asked about."""

    bank: Split
    choose: Split | None  # None: nothing is chosen, the penalty is as set
    rows: Split


@dataclass(frozen=True)
class Measured(Pretraining):
    """Base of the options that tell what their features are worth, at the end and on the way.

    ``neighbours`` and ``neighbours_temperature``: of the votes (:func:`knn_predict`). ``eval_every``: updates between
    two measurements on the way, a multiple of ``log_every``; ``None`` measures at the end only. ``probe_rows``:
    training rows that the linear probe learns from, at most; ``None``: all. ``probe_penalty``: of the probe on the
    way, and at the end where the source task has no validation part to choose one by.
    """

    neighbours: int = hparam(20, COUNT)
    neighbours_temperature: float = hparam(0.07, POSITIVE)
    eval_every: int | None = hparam(None, COUNT)
    probe_rows: int | None = hparam(5000, COUNT)
    probe_penalty: float = hparam(1e-3, POSITIVE)

    def feature_eval_settings(self) -> dict[str, Any]:
        """Return these settings."""
        trained = {f.name for f in fields(Pretraining)}
        return {f.name: getattr(self, f.name) for f in fields(Measured) if f.name not in trained}

    def feature_eval_every(self) -> int | None:
        """As set."""
        return self.eval_every

    def evaluate_features(self, features: Features, data: Transfer) -> dict[str, float]:
        """Return what the test part says of the features, of an untrained network's (``_random``) and of pixels."""
        asked = Asked(data.source["train"], data.source.get("val"), data.source["test"])
        found = self.scores(features.learned, asked, data)
        floors = {
            "random": self.floor(features, features.initial, features.initial, asked, data),
            "pixels": self.floor(features, "pixels", pixels, asked, data),
        }
        named = {f"source_test_{name}": value for name, value in found.items()}
        return named | {
            f"source_test_{name}_{of}": value for of, floor in floors.items() for name, value in floor.items()
        }

    def evaluate_features_during(self, features: Features, data: Transfer, step: int) -> dict[str, float]:
        """Return what validation says of the features, and before the first update also of pixels.

        Without a validation part every fifth training row is asked about and the others are the bank: the test part is
        left for the end.
        """
        asked = on_the_way(data)
        found = self.scores(features.learned, asked, data)
        if step > 0:
            return found
        floor = self.floor(features, "pixels on the way", pixels, asked, data)
        return found | {f"{name}_pixels": value for name, value in floor.items()}

    def floor(
        self, features: Features, name: Any, of: Callable[[Any], Any], asked: Asked, data: Transfer
    ) -> dict[str, float]:
        """Return the scores of what pre-training does not change: computed once, whoever asks next."""
        if name not in features.known:
            features.known[name] = self.scores(of, asked, data)
        return features.known[name]

    def scores(self, of: Callable[[Any], Any], asked: Asked, data: Transfer) -> dict[str, float]:
        """Return the accuracy of ``knn`` and of ``probe`` by some features; nothing where they are not finite."""
        if data.source_kind != "classification":
            return {}
        bank, rows = np.asarray(of(asked.bank.x)), np.asarray(of(asked.rows.x))
        if not (np.isfinite(bank).all() and np.isfinite(rows).all()):
            return {}
        vote = (self.neighbours, self.neighbours_temperature, data.source_outputs)
        hits = np.asarray(knn_predict(bank, asked.bank.y, rows, *vote)) == asked.rows.y
        return {"knn": float(np.mean(hits)), "probe": self.probe(of, asked, bank, rows, data.source_outputs)}

    def probe(self, of: Callable[[Any], Any], asked: Asked, bank: Any, rows: Any, classes: int) -> float:
        """Return the accuracy of a linear classifier, features centred and divided by one number.

        So a penalty means the same for features of any size.
        """
        few = bank[: self.probe_rows]
        train = (scaled(few, few), asked.bank.y[: self.probe_rows])
        test = (scaled(few, rows), asked.rows.y)
        if asked.choose is None:
            return scores(fit_probe(*train, classes, self.probe_penalty, iterations=STEPS), *test)["accuracy"]
        val = (scaled(few, np.asarray(of(asked.choose.x))), asked.choose.y)
        return linear_probe(*train, *val, *test, classes, iterations=STEPS)["test_accuracy"]


def on_the_way(data: Transfer) -> Asked:
    """Return what is measured on before the end."""
    train, val = data.source["train"], data.source.get("val")
    if val is not None:
        return Asked(train, None, val)  # what chose a penalty could not tell how good it is
    held = np.arange(len(train.x)) % HELD_OUT == HELD_OUT - 1
    return Asked(type(train)(train.x[~held], train.y[~held]), None, type(train)(train.x[held], train.y[held]))


def pixels(x: Any) -> Float[np.ndarray, "N D"]:
    """Return images as they are, from 0 to 1."""
    return np.asarray(x, np.float32).reshape(len(x), -1) / 255.0


def scaled(bank: Float[np.ndarray, "N D"], x: Float[np.ndarray, "M D"]) -> Float[np.ndarray, "M D"]:
    """Return features minus the bank's mean, divided by the root of the mean variance of its dimensions."""
    bank, x = np.asarray(bank, np.float64), np.asarray(x, np.float64)
    centre = bank.mean(axis=0)
    deviation = float(np.sqrt(np.mean(np.square(bank - centre))))
    return (x - centre) / (deviation or 1.0)

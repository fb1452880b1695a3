"""Learning from labels: regression and classification, and supervised pre-training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from src.config import knob
from src.engine.optimizers import Optimizer
from src.engine.schedules import Schedule


@dataclass(frozen=True)
class Objective:
    """Base of what a stage minimises and reports.

    All methods are pure functions of arrays, to be compiled and mapped over lanes. They compute in float32 where the
    outputs have less precision.
    """

    def loss(self, outputs: Float[Array, "N K"], targets: Array, smoothing: Any = None) -> Float[Array, ""]:
        """Return the mean loss of a batch: a mean over :meth:`count` terms.

        So the loss of several batches together is the mean of theirs, each weighted with its count: this is how
        gradients are accumulated.

        Args:
            outputs: of the network.
            targets: what they should be.
            smoothing: share of label smoothing, 0 to 1, possibly traced; ``None`` switches it off.
        """
        raise TypeError(f"{type(self).__name__} has no loss")

    def count(self, targets: Array) -> Float[Array, ""]:
        """Return the number of terms that :meth:`loss` is the mean of; here the rows."""
        return jnp.float32(targets.shape[0])

    def metrics(self, outputs: Float[Array, "N K"], targets: Array) -> dict[str, Float[Array, ""]]:
        """Return the loss and what else is worth reporting of a whole split.

        The loss is without label smoothing, so that runs with and without it can be compared.
        """
        raise TypeError(f"{type(self).__name__} has no metrics")

    def report(self, outputs: Float[Array, "N K"], targets: Array) -> dict[str, Float[Array, ""]]:
        """Return :meth:`metrics` and what costs more: read once, of a split at the end of a stage."""
        return self.metrics(outputs, targets)


@dataclass(frozen=True)
class Regression(Objective):
    """Mean squared error over ``(N,)`` predictions, in the units of the targets given."""

    def loss(
        self, outputs: Float[Array, "N 1"], targets: Float[Array, " N"], smoothing: Any = None
    ) -> Float[Array, ""]:
        """Return ``mean((outputs[:, 0] - targets) ** 2)``; ``(N, 1) - (N,)`` would broadcast to ``(N, N)``.

        There are no labels to smooth: ``smoothing`` is ignored here, a recipe that asks for it is refused before.
        """
        return jnp.mean(jnp.square(_at_least_float32(outputs).squeeze(-1) - targets))

    def metrics(self, outputs: Float[Array, "N 1"], targets: Float[Array, " N"]) -> dict[str, Float[Array, ""]]:
        """Return the loss and R squared (1 - MSE / variance of the targets; 0 for predicting their mean)."""
        loss = self.loss(outputs, targets)
        return {"loss": loss, "r2": 1.0 - loss / jnp.maximum(jnp.var(targets), 1e-12)}


@dataclass(frozen=True)
class Classification(Objective):
    """Cross-entropy over integer labels, in nats."""

    def loss(self, outputs: Float[Array, "N K"], targets: Int[Array, " N"], smoothing: Any = None) -> Float[Array, ""]:
        """Return the mean cross-entropy between labels and the softmax of the outputs.

        With label smoothing ``s`` (Szegedy et al. 2016, arXiv 1512.00567, section 7) the label's distribution over the
        ``K`` classes is ``(1 - s) * onehot + s / K``.
        """
        outputs = _at_least_float32(outputs)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, targets)
        if smoothing is not None:
            uniform = -jnp.mean(jax.nn.log_softmax(outputs), axis=-1)
            losses = (1.0 - smoothing) * losses + smoothing * uniform
        return jnp.mean(losses)

    def metrics(self, outputs: Float[Array, "N K"], targets: Int[Array, " N"]) -> dict[str, Float[Array, ""]]:
        """Return the loss and the share of labels with the highest output."""
        hits = jnp.argmax(outputs, axis=-1) == targets
        return {"loss": self.loss(outputs, targets), "accuracy": jnp.mean(hits.astype(jnp.float32))}

    def report(self, outputs: Float[Array, "N K"], targets: Int[Array, " N"]) -> dict[str, Float[Array, ""]]:
        """Return the metrics, how far the probabilities can be trusted, and signs of overconfidence.

        ``nll`` (nats), ``brier`` (sum over the classes, 0 to 2) and ``ece`` are as in ``src/results/calibration.py``.
        ``confidence`` is the mean highest probability, ``confident_wrong`` the share of all rows that are wrong with a
        highest probability above 0.9.
        """
        found = self.metrics(outputs, targets)
        probabilities = jax.nn.softmax(_at_least_float32(outputs))
        happened = jax.nn.one_hot(targets, outputs.shape[-1], dtype=probabilities.dtype)
        confidence = jnp.max(probabilities, axis=-1)
        hits = jnp.argmax(outputs, axis=-1) == targets
        return found | {
            "nll": found["loss"],
            "brier": jnp.mean(jnp.sum(jnp.square(probabilities - happened), axis=-1)),
            "confidence": jnp.mean(confidence),
            "ece": calibration_error(confidence, hits),
            "confident_wrong": jnp.mean(((confidence > 0.9) & ~hits).astype(jnp.float32)),
        }


def calibration_error(confidence: Float[Array, " N"], hits: Bool[Array, " N"], bins: int = 15) -> Float[Array, ""]:
    """Return the expected calibration error, inside a compiled program.

    ``src/results/calibration.py`` has the definition, and the same numbers on the host: bins are ``(lo, hi]``, a
    confidence of 0 falls into the first.
    """
    inner = jnp.asarray(np.arange(1, bins) / bins, confidence.dtype)
    place = jnp.sum(confidence[:, None] > inner[None, :], axis=-1)
    gaps = hits.astype(confidence.dtype) - confidence
    # A sum under a mask, since scattered additions have no fixed order on a GPU.
    each = jnp.sum(jnp.where(place[:, None] == jnp.arange(bins)[None, :], gaps[:, None], 0.0), axis=0)
    return jnp.sum(jnp.abs(each)) / confidence.shape[0]


def _at_least_float32(outputs: Float[Array, "N K"]) -> Float[Array, "N K"]:
    """Return the outputs of a bfloat16 pass in float32; others as they are."""
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


OBJECTIVES: dict[str, Objective] = {"regression": Regression(), "classification": Classification()}


@dataclass(frozen=True)
class Supervised:
    """``pretrain=supervised``: learn the source task from its labels, with its own optimizer and schedule."""

    optimizer: Optimizer = knob()
    schedule: Schedule = knob()

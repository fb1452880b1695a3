"""Learning from labels: regression and classification, and supervised pre-training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from ..metrics.classification import at_least_float32, calibration_error, confusion, of_confusion
from .base import Objective


@dataclass(frozen=True)
class Regression(Objective):
    """Mean squared error over ``(N,)`` predictions, in the units of the targets given."""

    def loss(
        self, outputs: Float[Array, "N 1"], targets: Float[Array, " N"], smoothing: Any = None
    ) -> Float[Array, ""]:
        """Return ``mean((outputs[:, 0] - targets) ** 2)``; ``(N, 1) - (N,)`` would broadcast to ``(N, N)``.

        There are no labels to smooth: ``smoothing`` is ignored here, a recipe that asks for it is refused before.
        """
        return jnp.mean(jnp.square(at_least_float32(outputs).squeeze(-1) - targets))

    def metrics(self, outputs: Float[Array, "N 1"], targets: Float[Array, " N"]) -> dict[str, Float[Array, ""]]:
        """Return the loss and R squared (1 - MSE / variance of the targets; 0 for predicting their mean)."""
        loss = self.loss(outputs, targets)
        return {"loss": loss, "r2": 1.0 - loss / jnp.maximum(jnp.var(targets), 1e-12)}

    def report(self, outputs: Float[Array, "N 1"], targets: Float[Array, " N"]) -> dict[str, Float[Array, ""]]:
        """Return the metrics and Pearson's correlation; 0 where one of the two is constant."""
        said, true = (values - values.mean() for values in (at_least_float32(outputs).squeeze(-1), targets))
        spread = jnp.sqrt(jnp.sum(said**2) * jnp.sum(true**2))
        return self.metrics(outputs, targets) | {"pearson": jnp.sum(said * true) / jnp.maximum(spread, 1e-12)}


@dataclass(frozen=True)
class Classification(Objective):
    """Cross-entropy over integer labels, in nats."""

    def loss(self, outputs: Float[Array, "N K"], targets: Int[Array, " N"], smoothing: Any = None) -> Float[Array, ""]:
        """Return the mean cross-entropy between labels and the softmax of the outputs.

        With label smoothing ``s`` (Szegedy et al. 2016, arXiv 1512.00567, section 7) the label's distribution over the
        ``K`` classes is ``(1 - s) * onehot + s / K``.
        """
        outputs = at_least_float32(outputs)
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

        ``nll`` is in nats, ``brier`` the sum over the classes (0 to 2), ``ece`` as in :func:`calibration_error`.
        ``confidence`` is the mean highest probability, ``confident_wrong`` the share of all rows that are wrong with a
        highest probability above 0.9.
        """
        found = self.metrics(outputs, targets)
        probabilities = jax.nn.softmax(at_least_float32(outputs))
        happened = jax.nn.one_hot(targets, outputs.shape[-1], dtype=probabilities.dtype)
        confidence = jnp.max(probabilities, axis=-1)
        hits = jnp.argmax(outputs, axis=-1) == targets
        return found | {
            "nll": found["loss"],
            "brier": jnp.mean(jnp.sum(jnp.square(probabilities - happened), axis=-1)),
            "confidence": jnp.mean(confidence),
            "ece": calibration_error(confidence, hits),
            "confident_wrong": jnp.mean(((confidence > 0.9) & ~hits).astype(jnp.float32)),
            **of_confusion(confusion(outputs, targets)),
        }

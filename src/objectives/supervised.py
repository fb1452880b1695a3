"""Regression and classification."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Array, Bool, Float, Int

from ..metrics.classification import accuracy, at_least_float32, confidence_metrics, masked_mean
from .base import Objective


@dataclass(frozen=True)
class Regression(Objective):
    """Mean squared error of ``(N,)`` targets, in the units of the targets."""

    def loss(
        self, outputs: Float[Array, "N 1"], targets: Float[Array, " N"], smoothing: Any = None
    ) -> Float[Array, ""]:
        """Return ``mean((outputs[:, 0] - targets) ** 2)``; recipes refuse smoothing."""
        return jnp.mean(jnp.square(at_least_float32(outputs).squeeze(-1) - targets))

    def metrics(self, outputs: Float[Array, "N 1"], targets: Float[Array, " N"]) -> dict[str, Float[Array, ""]]:
        """Return the loss and R squared (1 - MSE / variance of the targets; 0 for predicting their mean)."""
        loss = self.loss(outputs, targets)
        return {"loss": loss, "r2": 1.0 - loss / jnp.maximum(jnp.var(targets), 1e-12)}

    def report(self, outputs: Float[Array, "N 1"], targets: Float[Array, " N"]) -> dict[str, Float[Array, ""]]:
        """Return the metrics and Pearson's correlation; 0 if outputs or targets are constant."""
        predicted, true = (values - values.mean() for values in (at_least_float32(outputs).squeeze(-1), targets))
        scale = jnp.sqrt(jnp.sum(predicted**2) * jnp.sum(true**2))
        return self.metrics(outputs, targets) | {"pearson": jnp.sum(predicted * true) / jnp.maximum(scale, 1e-12)}


@dataclass(frozen=True)
class Classification(Objective):
    """Cross-entropy over integer labels, in nats."""

    def valid(self, targets: Int[Array, "*n"]) -> Bool[Array, "*n"] | None:
        """Return which entries are targets; ``None``: all are."""
        return None

    def loss(self, outputs: Float[Array, "*n K"], targets: Int[Array, "*n"], smoothing: Any = None) -> Array:
        """Return the mean cross-entropy between the valid labels and the softmax of the outputs.

        With label smoothing ``s`` (Szegedy et al. 2016, arXiv 1512.00567, section 7) the label's distribution over the
        ``K`` classes is ``(1 - s) * onehot + s / K``.
        """
        valid = self.valid(targets)
        outputs = at_least_float32(outputs)
        labels = targets if valid is None else jnp.maximum(targets, 0)
        losses = optax.softmax_cross_entropy_with_integer_labels(outputs, labels)
        if smoothing is not None:
            uniform = -jnp.mean(jax.nn.log_softmax(outputs), axis=-1)
            losses = (1.0 - smoothing) * losses + smoothing * uniform
        return masked_mean(losses, valid)

    def metrics(self, outputs: Float[Array, "*n K"], targets: Int[Array, "*n"]) -> dict[str, Float[Array, ""]]:
        """Return the loss and the share of labels that have the highest output."""
        return {"loss": self.loss(outputs, targets), "accuracy": accuracy(outputs, targets, self.valid(targets))}

    def report(self, outputs: Float[Array, "*n K"], targets: Int[Array, "*n"]) -> dict[str, Float[Array, ""]]:
        """Return the metrics, the loss as ``nll`` (nats), and :func:`confidence_metrics`."""
        found = self.metrics(outputs, targets)
        return found | {"nll": found["loss"], **confidence_metrics(outputs, targets, self.valid(targets))}

"""Learning from labels: regression and classification, and supervised pre-training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax.numpy as jnp
import optax
from jaxtyping import Array, Float, Int

from src.config import knob
from src.engine.optimizers import Optimizer
from src.engine.schedules import Schedule


@dataclass(frozen=True)
class Objective:
    """Base of what a stage minimises and reports."""

    def loss(self, outputs: Float[Array, "N K"], targets: Array, smoothing: Any = None) -> Float[Array, ""]:
        """Return the mean loss of a batch."""
        raise TypeError(f"{type(self).__name__} has no loss")

    def metrics(self, outputs: Float[Array, "N K"], targets: Array) -> dict[str, Float[Array, ""]]:
        """Return the loss and what else is worth reporting of a whole split."""
        raise TypeError(f"{type(self).__name__} has no metrics")

    def report(self, outputs: Array, targets: Array) -> dict[str, Array]:
        return self.metrics(outputs, targets)

    def count(self, targets: Array) -> Array:
        return jnp.asarray(len(targets), jnp.float32)


@dataclass(frozen=True)
class Regression(Objective):
    """Mean squared error over ``(N,)`` predictions, in the units of the targets given."""

    def loss(
        self, outputs: Float[Array, "N 1"], targets: Float[Array, " N"], smoothing: Any = None
    ) -> Float[Array, ""]:
        """Return ``mean((outputs[:, 0] - targets) ** 2)``; ``(N, 1) - (N,)`` would broadcast to ``(N, N)``."""
        return jnp.mean(jnp.square(outputs.squeeze(-1) - targets))

    def metrics(self, outputs: Float[Array, "N 1"], targets: Float[Array, " N"]) -> dict[str, Float[Array, ""]]:
        """Return the loss and R squared (1 - MSE / variance of the targets; 0 for predicting their mean)."""
        loss = self.loss(outputs, targets)
        return {"loss": loss, "r2": 1.0 - loss / jnp.maximum(jnp.var(targets), 1e-12)}


@dataclass(frozen=True)
class Classification(Objective):
    """Cross-entropy over integer labels, in nats."""

    def loss(self, outputs: Float[Array, "N K"], targets: Int[Array, " N"], smoothing: Any = None) -> Float[Array, ""]:
        """Return the mean negative log-probability of the labels."""
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(outputs, targets))

    def metrics(self, outputs: Float[Array, "N K"], targets: Int[Array, " N"]) -> dict[str, Float[Array, ""]]:
        """Return the loss and the share of labels with the highest output."""
        hits = jnp.argmax(outputs, axis=-1) == targets
        return {"loss": self.loss(outputs, targets), "accuracy": jnp.mean(hits.astype(jnp.float32))}


OBJECTIVES: dict[str, Objective] = {"regression": Regression(), "classification": Classification()}


@dataclass(frozen=True)
class Supervised:
    """``pretrain=supervised``: learn the source task from its labels, with its own optimizer and schedule."""

    optimizer: Optimizer = knob()
    schedule: Schedule = knob()

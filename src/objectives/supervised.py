"""Learning from labels: regression and classification, and supervised pre-training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jaxtyping import Array, Bool, Float, Int

from src.objectives.base import Objective, Pretraining


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

        ``nll`` (nats), ``brier`` (sum over the classes, 0 to 2) and ``ece`` are as in ``src/results/calibration.py``.
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


def confusion(outputs: Float[Array, "*n K"], targets: Int[Array, "*n"]) -> Float[Array, "K K"]:
    """Return how often each class (axis 0) was taken for each (axis 1); targets of -1 do not count."""
    said = jax.nn.one_hot(jnp.argmax(outputs, axis=-1), outputs.shape[-1]).reshape(-1, outputs.shape[-1])
    true = jax.nn.one_hot(targets, outputs.shape[-1]).reshape(-1, outputs.shape[-1])
    return jnp.matmul(true.T, said, precision=jax.lax.Precision.HIGHEST)


def of_confusion(counts: Float[Array, "K K"]) -> dict[str, Float[Array, ""]]:
    """Return ``macro_f1`` and ``matthews``, in which rare classes count as much as frequent ones.

    A class that neither occurs nor is ever said has no F1 and is left out, as scikit-learn does. Matthews' correlation
    for several classes is Gorodkin's (2004, doi 10.1016/j.compbiolchem.2004.09.006, eq. 8), 0 where it is not defined.
    """
    right, true, said = jnp.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
    shares = jnp.stack([true, said]) / jnp.maximum(counts.sum(), 1.0)  # counts' squares would not fit into float32
    agreement = right.sum() / jnp.maximum(counts.sum(), 1.0) - jnp.sum(shares[0] * shares[1])
    spread = (1.0 - jnp.sum(jnp.square(shares), axis=1)).prod()
    return {
        "macro_f1": jnp.sum(2.0 * right / jnp.maximum(true + said, 1.0)) / jnp.maximum(jnp.sum(true + said > 0), 1),
        "matthews": jnp.where(spread > 0, agreement / jnp.sqrt(jnp.where(spread > 0, spread, 1.0)), 0.0),
    }


def calibration_error(
    confidence: Float[Array, "*n"], hits: Bool[Array, "*n"], bins: int = 15, chosen: Bool[Array, "*n"] | None = None
) -> Float[Array, ""]:
    """Return the expected calibration error, inside a compiled program, of the chosen predictions (None: of all).

    ``src/results/calibration.py`` has the definition, and the same numbers on the host: bins are ``(lo, hi]``, a
    confidence of 0 falls into the first.
    """
    inner = jnp.asarray(np.arange(1, bins) / bins, confidence.dtype)
    gaps = hits.astype(confidence.dtype) - confidence
    count: Any = confidence.size
    if chosen is not None:
        gaps, count = jnp.where(chosen, gaps, 0.0), jnp.maximum(chosen.sum(), 1)
    confidence, gaps = confidence.reshape(-1), gaps.reshape(-1)
    place = jnp.sum(confidence[:, None] > inner[None, :], axis=-1)
    # A sum under a mask, since scattered additions have no fixed order on a GPU.
    each = jnp.sum(jnp.where(place[:, None] == jnp.arange(bins)[None, :], gaps[:, None], 0.0), axis=0)
    return jnp.sum(jnp.abs(each)) / count


def at_least_float32(outputs: Float[Array, "N K"]) -> Float[Array, "N K"]:
    """Return the outputs of a bfloat16 pass in float32; others as they are."""
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


@dataclass(frozen=True)
class Supervised(Pretraining):
    """``pretrain=supervised``: learn the source task as the data has it: from its labels, or its texts' own words."""

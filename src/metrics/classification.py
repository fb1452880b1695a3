"""Metrics of classifications, inside a compiled program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


def at_least_float32(outputs: Float[Array, "N K"]) -> Float[Array, "N K"]:
    """Return outputs of a lower precision, such as bfloat16, in float32; others unchanged."""
    return outputs.astype(jnp.promote_types(outputs.dtype, jnp.float32))


def masked_mean(values: Float[Array, "*n"], valid: Bool[Array, "*n"] | None) -> Float[Array, ""]:
    """Return the mean of the valid values (``None``: of all); 0 if none is valid."""
    if valid is None:
        return jnp.mean(values)
    return jnp.sum(jnp.where(valid, values, 0.0)) / jnp.maximum(jnp.sum(valid), 1)


def accuracy(
    outputs: Float[Array, "*n K"], targets: Int[Array, "*n"], valid: Bool[Array, "*n"] | None = None
) -> Float[Array, ""]:
    """Return the share of valid targets that have the highest output."""
    return masked_mean((jnp.argmax(outputs, axis=-1) == targets).astype(jnp.float32), valid)


def confidence_metrics(
    outputs: Float[Array, "*n K"], targets: Int[Array, "*n"], valid: Bool[Array, "*n"] | None = None
) -> dict[str, Float[Array, ""]]:
    """Return calibration, signs of overconfidence and class-balanced scores of the valid targets.

    ``brier`` is a sum over the classes, 0 to 2; ``confidence`` the mean highest probability; ``confident_wrong`` the
    share of rows that are wrong with a highest probability above 0.9.
    """
    probabilities = jax.nn.softmax(at_least_float32(outputs))
    one_hot = jax.nn.one_hot(targets, outputs.shape[-1], dtype=probabilities.dtype)
    confidence = jnp.max(probabilities, axis=-1)
    hits = jnp.argmax(outputs, axis=-1) == targets
    return {
        "brier": masked_mean(jnp.sum(jnp.square(probabilities - one_hot), axis=-1), valid),
        "confidence": masked_mean(confidence, valid),
        "ece": calibration_error(confidence, hits, valid=valid),
        "confident_wrong": masked_mean(((confidence > 0.9) & ~hits).astype(jnp.float32), valid),
        **f1_and_matthews(confusion(outputs, targets)),
    }


def confusion(outputs: Float[Array, "*n K"], targets: Int[Array, "*n"]) -> Float[Array, "K K"]:
    """Return how often class i (row) was predicted as class j (column); targets of -1 do not count."""
    predicted = jax.nn.one_hot(jnp.argmax(outputs, axis=-1), outputs.shape[-1]).reshape(-1, outputs.shape[-1])
    true = jax.nn.one_hot(targets, outputs.shape[-1]).reshape(-1, outputs.shape[-1])
    return jnp.matmul(true.T, predicted, precision=jax.lax.Precision.HIGHEST)


def f1_and_matthews(counts: Float[Array, "K K"]) -> dict[str, Float[Array, ""]]:
    """Return ``macro_f1`` and ``matthews`` of a confusion matrix: rare classes count as much as frequent ones.

    As in scikit-learn, the macro F1 leaves out a class that neither occurs nor is predicted. Matthews' correlation for
    several classes is Gorodkin's (2004, doi 10.1016/j.compbiolchem.2004.09.006, eq. 8), 0 where it is undefined.
    """
    right, true, predicted = jnp.diagonal(counts), counts.sum(axis=1), counts.sum(axis=0)
    shares = jnp.stack([true, predicted]) / jnp.maximum(counts.sum(), 1.0)  # squared counts could exceed float32
    agreement = right.sum() / jnp.maximum(counts.sum(), 1.0) - jnp.sum(shares[0] * shares[1])
    variance = (1.0 - jnp.sum(jnp.square(shares), axis=1)).prod()
    support = true + predicted
    return {
        "macro_f1": jnp.sum(2.0 * right / jnp.maximum(support, 1.0)) / jnp.maximum(jnp.sum(support > 0), 1),
        "matthews": jnp.where(variance > 0, agreement / jnp.sqrt(jnp.where(variance > 0, variance, 1.0)), 0.0),
    }


def calibration_error(
    confidence: Float[Array, "*n"], hits: Bool[Array, "*n"], bins: int = 15, valid: Bool[Array, "*n"] | None = None
) -> Float[Array, ""]:
    """Return the expected calibration error of the valid predictions (``None``: of all).

    Guo et al. (arXiv 1706.04599, eq. 3): the mean over rows of the distance between the accuracy and the mean
    confidence of a row's bin. Bin ``i`` of equal width is ``(i / bins, (i + 1) / bins]``; a confidence of 0 belongs to
    the first.
    """
    edges = jnp.asarray(np.arange(1, bins) / bins, confidence.dtype)
    gaps = hits.astype(confidence.dtype) - confidence
    count: Any = confidence.size
    if valid is not None:
        gaps, count = jnp.where(valid, gaps, 0.0), jnp.maximum(valid.sum(), 1)
    confidence, gaps = confidence.reshape(-1), gaps.reshape(-1)
    bin_ids = jnp.sum(confidence[:, None] > edges[None, :], axis=-1)
    # A masked sum, as scattered additions have no fixed order on a GPU.
    totals = jnp.sum(jnp.where(bin_ids[:, None] == jnp.arange(bins)[None, :], gaps[:, None], 0.0), axis=0)
    return jnp.sum(jnp.abs(totals)) / count

"""Metrics of classifications, inside a compiled program."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int


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

    Guo et al. (arXiv 1706.04599, eq. 3): the mean over rows of the distance between the accuracy and the mean
    confidence of a row's bin. Bin ``i`` of equal width is ``(i / bins, (i + 1) / bins]``; a confidence of 0 belongs to
    the first.
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

"""k-nearest-neighbour classification, which evaluates features without training on them."""

from __future__ import annotations

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from .embeddings import PRECISE, unit

CHUNK = 256  # queries at a time: with a bank of 50,000 rows, 50 MB of similarities


@partial(jax.jit, static_argnames=("k", "classes"))
def knn_predict(
    bank: Float[Array, "N D"],
    labels: Int[Array, " N"],
    queries: Float[Array, "Q D"],
    k: int,
    temperature: Any,
    classes: int,
) -> Int[Array, " Q"]:
    """Return the label by a vote of the ``k`` nearest rows of a bank, by cosine similarity.

    Wu et al. (arXiv 1805.01978, section 3.4): each neighbour votes with weight ``exp(similarity / temperature)``. At a
    high temperature the majority decides, at a low one the nearest neighbour. Ties are broken by the first row of the
    bank and the lowest label. The paper has a ``k`` of 200, at most the bank's rows are used, and a temperature of
    0.07. Labels outside of 0 to ``classes - 1`` do not vote.

    Raises:
        ValueError: ``k`` or ``classes`` is below 1, or the bank has no rows.
    """
    if k < 1 or classes < 1 or not len(bank):
        raise ValueError(f"k, classes and the bank's rows must be at least 1, got {k}, {classes} and {len(bank)}")
    bank, k = unit(bank), min(k, len(bank))

    def vote(query: Array) -> Array:
        nearest, places = jax.lax.top_k(jnp.matmul(bank, query, precision=PRECISE), k)
        weights = jnp.exp((nearest - nearest[0]) / temperature)  # the nearest has weight 1, so nothing overflows
        # A masked sum, as scattered additions have no fixed order on a GPU.
        one_hot = labels[places][:, None] == jnp.arange(classes)[None, :]
        return jnp.argmax(jnp.sum(jnp.where(one_hot, weights[:, None], 0.0), axis=0))

    return jax.lax.map(vote, unit(queries), batch_size=CHUNK)

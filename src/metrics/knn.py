"""Labels by the nearest neighbours of a bank of features: how good features are, without training anything on them."""

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
    """Return the label that the ``k`` nearest rows of a bank vote for, by cosine similarity.

    Wu et al. (arXiv 1805.01978, section 3.4): each neighbour votes with weight ``exp(similarity / temperature)``. At a
    high temperature that is the plain majority, at a low one the nearest neighbour decides. Of rows that are equally
    near the first in the bank is taken, of labels with equal votes the lowest.

    Args:
        bank: features of the training rows, of any length.
        labels: theirs, from 0 to ``classes - 1``; others do not vote.
        queries: features to be labelled.
        k: number of neighbours. A bank of fewer rows votes as a whole, so that one setting serves a bank of any size.
        temperature: > 0, possibly traced; 0.07 in the paper, with ``k`` of 200.
        classes: how many there are. It is given, since labels to be predicted must not say it.

    Raises:
        ValueError: ``k`` or ``classes`` is below 1, or the bank has no rows.
    """
    if k < 1 or classes < 1 or not len(bank):
        raise ValueError(f"k, classes and the bank's rows must be at least 1, got {k}, {classes} and {len(bank)}")
    bank, k = unit(bank), min(k, len(bank))

    def vote(query: Array) -> Array:
        nearest, places = jax.lax.top_k(jnp.matmul(bank, query, precision=PRECISE), k)
        weights = jnp.exp((nearest - nearest[0]) / temperature)  # the nearest has 1: nothing overflows
        # A sum under a mask, since scattered additions have no fixed order on a GPU.
        mine = labels[places][:, None] == jnp.arange(classes)[None, :]
        return jnp.argmax(jnp.sum(jnp.where(mine, weights[:, None], 0.0), axis=0))

    return jax.lax.map(vote, unit(queries), batch_size=CHUNK)

"""Which tokens a masked language model has to predict, and what replaces them in its input."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

SHARES = (0.8, 0.1, 0.1)  # of the chosen tokens: replaced by [MASK], replaced by a random token, unchanged


def mask_tokens(
    key: Array,
    ids: Int[Array, "N L"],
    special_mask: Bool[Array, "N L"],
    *,
    mask_id: int,
    vocab_size: int,
    mask_prob: Any = 0.15,
    shares: tuple[float, float, float] = SHARES,
    fixed_count: bool = False,
    lengths: Int[Array, " N"] | None = None,
    max_predictions: int | None = None,
    words: Int[Array, "N L"] | None = None,
) -> tuple[Int[Array, "N L"], Bool[Array, "N L"]]:
    """Return the masked input and which tokens were chosen (Devlin et al., arXiv 1810.04805, section 3.1).

    Each token that is not special is chosen independently with probability ``mask_prob``; with ``fixed_count``, each
    row has the number that :func:`num_to_mask` returns. A random token may be any of the vocabulary, also the original
    one. In a row without eligible tokens none is chosen.

    Args:
        key: random key.
        ids: tokens.
        special_mask: true at special tokens and padding, which are never chosen.
        mask_id: id of [MASK].
        vocab_size: number of tokens that random ones are drawn from.
        mask_prob: share of the tokens that are chosen, 0 to 1; with ``fixed_count`` a Python number.
        shares: of the chosen tokens: replaced by [MASK], replaced by a random token, unchanged; they add up to 1.
        fixed_count: whether the number of chosen tokens of a row is fixed. A packed row counts as one.
        lengths: with ``fixed_count``, the tokens of each row, special ones included; ``None``: all of the row.
        max_predictions: with ``fixed_count``, the most chosen tokens of a row; ``None``: no limit.
        words: the number of each token's word (:func:`word_ids`), whose pieces are chosen together and replaced
            independently, as in BERT's whole-word masking; 0: no word. ``None``: each token is a word.
    """
    choice, fate, word = jax.random.split(key, 3)
    size = jnp.full(ids.shape[:1], ids.shape[1]) if lengths is None else lengths
    count = num_to_mask(size, ids.shape[1], mask_prob, max_predictions) if fixed_count else None
    if words is None:
        chosen = choose_tokens(choice, ~special_mask, mask_prob, count)
    else:
        chosen = choose_words(choice, ~special_mask, words, mask_prob, count)
    u = jax.random.uniform(fate, ids.shape)
    random = jax.random.randint(word, ids.shape, 0, vocab_size, ids.dtype)
    replaced = jnp.where(u < shares[0], mask_id, jnp.where(u < shares[0] + shares[1], random, ids))
    return jnp.where(chosen, replaced, ids).astype(ids.dtype), chosen


def num_to_mask(
    lengths: Int[Array, " N"], max_length: int, mask_prob: float, max_predictions: int | None
) -> Int[Array, " N"]:
    """Return ``min(max_predictions, max(1, round(mask_prob * length)))`` for each row, as in BERT's code."""
    # A table in float64, halves to even: in float32, 0.15 * 30 would be more than 4.5.
    table = np.maximum(1, np.rint(mask_prob * np.arange(max_length + 1))).astype(np.int32)
    return jnp.asarray(table if max_predictions is None else np.minimum(table, max_predictions))[lengths]


def choose_tokens(
    key: Array, allowed: Bool[Array, "N L"], mask_prob: Any, count: Int[Array, " N"] | None
) -> Bool[Array, "N L"]:
    """Return which allowed tokens are chosen: each with probability ``mask_prob``, or ``count`` of each row."""
    u = jax.random.uniform(key, allowed.shape)
    if count is None:
        return (u < mask_prob) & allowed
    rank = jnp.argsort(jnp.argsort(jnp.where(allowed, u, 2.0), axis=1), axis=1)
    return (rank < count[:, None]) & allowed


def choose_words(
    key: Array, allowed: Bool[Array, "N L"], words: Int[Array, "N L"], mask_prob: Any, count: Int[Array, " N"] | None
) -> Bool[Array, "N L"]:
    """Return which allowed tokens are chosen, all of a word or none of them.

    With ``count``, words are taken in a random order until a row has ``count`` tokens; longer ones are skipped.
    """
    u = jax.random.uniform(key, (*words.shape[:1], words.shape[1] + 1))  # one number for each word
    if count is None:
        taken = u < mask_prob
    else:
        rows = jnp.arange(len(words))[:, None]
        pieces = jnp.zeros(u.shape, jnp.int32).at[rows, jnp.where(allowed, words, 0)].add(1)
        taken = _fill(u, pieces, count)
    return jnp.take_along_axis(taken, words, axis=1) & allowed & (words > 0)


def _fill(u: Array, pieces: Int[Array, "N W"], count: Int[Array, " N"]) -> Bool[Array, "N W"]:
    """Return which words are taken, in the order of ``u``, until ``count`` pieces are."""
    order = jnp.argsort(u.at[:, 0].set(2.0), axis=1)  # entry 0, which is no word, comes last
    sizes = jnp.take_along_axis(pieces, order, axis=1)

    def take(total: Array, size: Array) -> tuple[Array, Array]:
        fits = total + size <= count
        return total + jnp.where(fits, size, 0), fits

    _, fits = jax.lax.scan(take, jnp.zeros_like(count), sizes.T)
    return jnp.take_along_axis(fits.T, jnp.argsort(order, axis=1), axis=1)


def word_ids(
    ids: Int[Array, "N L"], special_mask: Bool[Array, "N L"], continues: Bool[Array, " V"]
) -> Int[Array, "N L"]:
    """Return the number of each token's word within its row, from 1; 0 at special tokens and padding, which end a word.

    ``continues``: for each token of the vocabulary, whether it continues a word (``##ing``).
    """
    before = jnp.pad(special_mask[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    begins = ~special_mask & (before | ~continues[ids])
    return jnp.where(special_mask, 0, jnp.cumsum(begins, axis=1))

"""Which words a masked language model has to guess, and what it sees in their place."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

SHARES = (0.8, 0.1, 0.1)  # of the chosen words: replaced by the mask, by a random word, left as they are


def mask_tokens(
    key: Array,
    ids: Int[Array, "N L"],
    special_mask: Bool[Array, "N L"],
    *,
    mask_id: int,
    vocab_size: int,
    rate: Any = 0.15,
    shares: tuple[float, float, float] = SHARES,
    exact: bool = False,
    lengths: Int[Array, " N"] | None = None,
    most: int | None = None,
    words: Int[Array, "N L"] | None = None,
) -> tuple[Int[Array, "N L"], Bool[Array, "N L"]]:
    """Return tokens with some of them hidden, and which those are (Devlin et al., arXiv 1810.04805, section 3.1).

    Each token that is not special is chosen on its own with probability ``rate``; under ``exact``, as many of a row as
    :func:`exact_count` says. A random word may be any of the vocabulary's, the right one included. Of a row without a
    token to choose from, none is.

    Args:
        key: of what is drawn.
        ids: tokens.
        special_mask: where nothing may be chosen: special tokens and padding.
        mask_id: of the token that stands for a missing one.
        vocab_size: how many tokens there are to draw from.
        rate: share of the tokens that are chosen, 0 to 1; under ``exact`` a plain number.
        shares: of the chosen ones that become the mask, a random word, or stay; together 1.
        exact: whether the number of chosen tokens of a row is fixed. A packed row counts as one.
        lengths: under ``exact``, the tokens of each row, special ones included; ``None``: all are.
        most: under ``exact``, the most chosen tokens of a row; ``None``: any number.
        words: the number of each token's word (:func:`word_numbers`), whose pieces are chosen together; 0: of none.
            What each of them becomes is drawn for itself, as it is in BERT's whole-word masking too. ``None``: each
            token is a word.
    """
    choice, fate, word = jax.random.split(key, 3)
    size = jnp.full(ids.shape[:1], ids.shape[1]) if lengths is None else lengths
    count = exact_count(size, ids.shape[1], rate, most) if exact else None
    if words is None:
        chosen = chosen_tokens(choice, ~special_mask, rate, count)
    else:
        chosen = chosen_words(choice, ~special_mask, words, rate, count)
    lot = jax.random.uniform(fate, ids.shape)
    random = jax.random.randint(word, ids.shape, 0, vocab_size, ids.dtype)
    hidden = jnp.where(lot < shares[0], mask_id, jnp.where(lot < shares[0] + shares[1], random, ids))
    return jnp.where(chosen, hidden, ids).astype(ids.dtype), chosen


def exact_count(lengths: Int[Array, " N"], longest: int, rate: float, most: int | None) -> Int[Array, " N"]:
    """Return how many tokens of each row are hidden: ``min(most, max(1, round(rate * length)))``, as in BERT's code.

    Args:
        lengths: tokens of each row, special ones included.
        longest: the largest length there may be.
        rate: share of the tokens.
        most: tokens, ``None`` for any number.
    """
    # A table in float64, halves to even: in float32, 0.15 * 30 would be more than 4.5.
    table = np.maximum(1, np.rint(rate * np.arange(longest + 1))).astype(np.int32)
    return jnp.asarray(table if most is None else np.minimum(table, most))[lengths]


def chosen_tokens(
    key: Array, allowed: Bool[Array, "N L"], rate: Any, count: Int[Array, " N"] | None
) -> Bool[Array, "N L"]:
    """Return which of the allowed tokens are chosen: each with probability ``rate``, or ``count`` of each row."""
    lot = jax.random.uniform(key, allowed.shape)
    if count is None:
        return (lot < rate) & allowed
    rank = jnp.argsort(jnp.argsort(jnp.where(allowed, lot, 2.0), axis=1), axis=1)
    return (rank < count[:, None]) & allowed


def chosen_words(
    key: Array, allowed: Bool[Array, "N L"], words: Int[Array, "N L"], rate: Any, count: Int[Array, " N"] | None
) -> Bool[Array, "N L"]:
    """Return which of the allowed tokens are chosen, all of a word's or none of them.

    Each word with probability ``rate``; or words of each row in a random order as long as they fit into ``count``
    tokens: one that is too long for what is left is passed over.
    """
    lot = jax.random.uniform(key, (*words.shape[:1], words.shape[1] + 1))  # by the number of the word
    taken = lot < rate if count is None else _filled(lot, _pieces(allowed, words), count)
    return jnp.take_along_axis(taken, words, axis=1) & allowed & (words > 0)


def _pieces(allowed: Bool[Array, "N L"], words: Int[Array, "N L"]) -> Int[Array, "N L+1"]:
    """Return how many allowed tokens each word has, by its number."""
    rows = jnp.arange(len(words))[:, None]
    numbers = jnp.where(allowed, words, 0)
    return jnp.zeros((len(words), words.shape[1] + 1), jnp.int32).at[rows, numbers].add(1)


def _filled(lot: Array, pieces: Int[Array, "N W"], count: Int[Array, " N"]) -> Bool[Array, "N W"]:
    """Return which words are taken, in the order of their lots, until ``count`` pieces are."""
    order = jnp.argsort(lot.at[:, 0].set(2.0), axis=1)  # number 0, of no word, comes last
    sizes = jnp.take_along_axis(pieces, order, axis=1)

    def one(total: Array, size: Array) -> tuple[Array, Array]:
        fits = total + size <= count
        return total + jnp.where(fits, size, 0), fits

    _, fits = jax.lax.scan(one, jnp.zeros_like(count), sizes.T)
    return jnp.take_along_axis(fits.T, jnp.argsort(order, axis=1), axis=1)


def word_numbers(
    ids: Int[Array, "N L"], special_mask: Bool[Array, "N L"], continues: Bool[Array, " V"]
) -> Int[Array, "N L"]:
    """Return the number of each token's word within its row, from 1; 0 at special tokens and padding.

    Args:
        ids: tokens.
        special_mask: what is no word. A word that is cut by one goes on as another.
        continues: of each token of the vocabulary, whether it continues a word (``##ing``).
    """
    before = jnp.pad(special_mask[:, :-1], ((0, 0), (1, 0)), constant_values=True)
    begins = ~special_mask & (before | ~continues[ids])
    return jnp.where(special_mask, 0, jnp.cumsum(begins, axis=1))

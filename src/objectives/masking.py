"""Which words a masked language model has to guess, and what it sees in their place."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
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
) -> tuple[Int[Array, "N L"], Bool[Array, "N L"]]:
    """Return tokens with some of them hidden, and which those are (Devlin et al., arXiv 1810.04805, section 3.1).

    Each token that is not special is chosen on its own with probability ``rate``. A random word may be any of the
    vocabulary's, the right one included.

    Args:
        key: of what is drawn.
        ids: tokens.
        special_mask: where nothing may be chosen: special tokens and padding.
        mask_id: of the token that stands for a missing one.
        vocab_size: how many tokens there are to draw from.
        rate: share of the tokens that are chosen, 0 to 1.
        shares: of the chosen ones that become the mask, a random word, or stay; together 1.
    """
    choice, fate, word = jax.random.split(key, 3)
    chosen = (jax.random.uniform(choice, ids.shape) < rate) & ~special_mask
    lot = jax.random.uniform(fate, ids.shape)
    random = jax.random.randint(word, ids.shape, 0, vocab_size, ids.dtype)
    hidden = jnp.where(lot < shares[0], mask_id, jnp.where(lot < shares[0] + shares[1], random, ids))
    return jnp.where(chosen, hidden, ids).astype(ids.dtype), chosen

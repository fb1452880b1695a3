"""Layers that several networks use."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int

from .cpu_kernels import hashed_bits


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose rate may be traced. It acts only where a ``dropout`` key is given."""

    rate: Any  # share of the values that are set to zero, 0 to 1; None: no dropout

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return ``x`` with a random share of zeros; the rest is scaled up so that the mean is unchanged."""
        if self.rate is None or not self.has_rng("dropout"):
            return x
        return dropout(self.make_rng("dropout"), x, self.rate)


def dropout(key: Array, x: Array, rate: Any) -> Array:
    """Set a share ``rate`` of ``x`` to zero and divide the rest by ``1 - rate``; a rate of 1 gives zeros."""
    bits = hashed_bits(jax.random.bits(key, (2,)), x.shape)
    # 24 bits, because a float32 in [0, 1) holds no more.
    kept = (bits >> 8).astype(jnp.float32) * jnp.float32(2**-24) >= rate
    return jnp.where(kept, x / jnp.maximum(1.0 - rate, 1e-7), 0.0).astype(x.dtype)


def take_rows(x: Float[Array, "N L E"], indices: Int[Array, "N V"]) -> Float[Array, "N V E"]:
    """Return the rows of each matrix at these indices, which must be distinct and in bounds."""
    return jax.vmap(lambda row, at: row.at[at].get(unique_indices=True, mode="promise_in_bounds"))(x, indices)

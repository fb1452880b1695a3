"""Layers that networks share."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float, Int


class Dropout(nn.Module):
    """Dropout (Srivastava et al. 2014) whose rate may be traced; it acts where a pass is given a key for it."""

    rate: Any  # share of the values set to zero, 0 to 1; None: no dropout at all

    @nn.compact
    def __call__(self, x: Array) -> Array:
        """Return ``x`` with a random share of zeros, the rest scaled up so that the mean stays."""
        if self.rate is None or not self.has_rng("dropout"):
            return x
        return drop(self.make_rng("dropout"), x, self.rate)


def drop(key: Array, x: Array, rate: Any) -> Array:
    """Set a share ``rate`` of ``x`` to zero and divide the rest by ``1 - rate``; a rate of 1 gives zeros."""
    bits = hashed_bits(jax.random.bits(key, (2,)), x.shape)
    # A threshold on 24 bits: they are what a float32 in [0, 1) can hold.
    kept = (bits >> 8).astype(jnp.float32) * jnp.float32(2**-24) >= rate
    return jnp.where(kept, x / jnp.maximum(1.0 - rate, 1e-7), 0.0).astype(x.dtype)


def hashed_bits(seeds: Array, shape: tuple[int, ...]) -> Array:
    """Return 32 well-mixed bits for every place of an array, as a hash of its number.

    A counter through three xor-shift-multiply rounds: some thirty times cheaper on a CPU than ``jax.random.bits``, and
    good enough for dropout, which is all it is used for.

    Args:
        seeds: two random 32-bit words.
        shape: of the result; at most 2**32 values.
    """
    size = 1
    for length in shape:
        size *= length
    h = jax.lax.iota(jnp.uint32, size) * jnp.uint32(0x9E3779B9) + seeds[0]
    for multiplier in (0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F):
        h = (h ^ (h >> 16)) * jnp.uint32(multiplier) + seeds[1]
    return (h ^ (h >> 15)).reshape(shape)


def gelu(x: Array) -> Array:
    """Return ``x Phi(x)``, Phi of the standard normal distribution (Hendrycks and Gimpel, arXiv 1606.08415).

    With ``erf``: ``jax.nn.gelu`` takes ``erfc``, which has a branch more.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * jnp.asarray(0.5**0.5, x.dtype)))


ROWS = 8  # of ones: of a product with a single one, XLA (jax 0.10) sums place by place, which loses digits


def total(values: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Return the sum over all axes but the last, which stay, of length 1; on a processor by a product with ones.

    XLA (jax 0.10) sums there in windows, and over leading axes its windows jump through memory: some ten times slower.
    """
    axes = tuple(range(values.ndim - 1))
    if jax.default_backend() != "cpu":
        return values.sum(axes, keepdims=True)
    flat = values.reshape(-1, values.shape[-1])
    return jnp.expand_dims(jnp.dot(jnp.ones((ROWS, len(flat)), flat.dtype), flat)[0], axes)


@jax.custom_vjp
def shifted(x: Float[Array, "... C"], bias: Float[Array, " C"]) -> Float[Array, "... C"]:
    """Return ``x`` with a bias added, whose gradient is summed by :func:`total`."""
    return x + bias.reshape((1,) * (x.ndim - 1) + (-1,)).astype(x.dtype)


def _shifted(x: Array, bias: Array) -> tuple[Array, Array]:
    return shifted(x, bias), bias


def _slopes(bias: Array, slope: Array) -> tuple[Array, Array]:
    wide = slope.astype(jnp.promote_types(bias.dtype, jnp.float32))
    return slope, total(wide).reshape(-1).astype(bias.dtype)


shifted.defvjp(_shifted, _slopes)


def taken(rows: Float[Array, "N L E"], places: Int[Array, "N V"]) -> Float[Array, "N V E"]:
    """Return some of the rows of each matrix, by their numbers, of which none comes twice."""
    return jax.vmap(lambda own, at: own.at[at].get(unique_indices=True, mode="promise_in_bounds"))(rows, places)

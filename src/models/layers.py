"""Layers that several networks use, and the low-rank path of LoRA."""

from __future__ import annotations

import math
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax.linen.dtypes import promote_dtype
from jaxtyping import Array, Float, Int

from ..errors import UserError
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


def scale(alpha: Any, rank: int, rank_stabilised: bool = False) -> Any:
    """Return LoRA's scaling, ``alpha / r``; ``rank_stabilised``: ``alpha / sqrt(r)`` (rsLoRA, arXiv 2312.03732)."""
    return alpha / (math.sqrt(rank) if rank_stabilised else rank)


def lowrank(
    module: nn.Module, x: Float[Array, "... in"], a: Float[Array, "*window in r"], b: Float[Array, "*ones r out"]
) -> Float[Array, "... out"]:
    """Return ``(x A) B``, without the product ``A B`` (Hu et al. 2021, arXiv 2106.09685, eq. 3).

    ``x A`` is computed by a copy of the module with r features and no bias, so strides, padding, dilation and leading
    dimensions are the module's. B acts on the last axis: for a convolution, as a 1x1 convolution. Modules whose output
    may not be linear in their kernel are refused.
    """
    # Not `isinstance`: a subclass may transform its kernel first (weight standardisation).
    dense = getattr(module, "feature_group_count", 1) == 1 and getattr(module, "mask", None) is None
    if type(module) not in (nn.Dense, nn.Conv) or not dense:
        raise UserError(
            f"a low-rank path beside {'/'.join(module.path)}, a {type(module).__name__}, is not supported; "
            "allowed: Dense, and Conv without groups or a mask"
        )
    down = module.clone(parent=None, name=None, features=a.shape[-1], use_bias=False)  # type: ignore[call-arg]
    hidden, up = promote_dtype(down.apply({"params": {"kernel": a}}, x), b.reshape(b.shape[-2:]), dtype=module.dtype)
    return jnp.matmul(hidden, up, precision=module.precision)

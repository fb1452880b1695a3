"""Batch normalisation as a processor computes it quickly: its sums are products, its gradients are written out."""

from __future__ import annotations

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

from .layers import total


class BatchNorm(nn.BatchNorm):
    """``nn.BatchNorm`` over the last axis, with other kernels for the statistics of a batch and their gradients.

    XLA (jax 0.10) takes five times as long, on a processor, for the sums of what JAX derives of ``nn.BatchNorm``. Of
    the fields of that one, those are looked at that are about momentum, epsilon and the initial values.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "... C"], use_running_average: bool | None = None, *, mask: Array | None = None
    ) -> Float[Array, "... C"]:
        """Return ``x`` normalised, by the kept statistics or by the batch's own, which then move the kept ones.

        Args:
            x: values, of which all axes but the last are summed over.
            use_running_average: whether the kept statistics are taken.
            mask: ``nn.BatchNorm`` has one; here all places count, and ``None`` is all that is allowed.
        """
        if mask is not None:
            raise ValueError("mask: all places count in this normalisation; allowed: None")
        width, axes = x.shape[-1:], tuple(range(x.ndim - 1))
        kept = (
            self.variable("batch_stats", "mean", jnp.zeros, width),
            self.variable("batch_stats", "var", jnp.ones, width),
        )
        own = (
            self.param("scale", self.scale_init, width, self.param_dtype),
            self.param("bias", self.bias_init, width, self.param_dtype),
        )
        dtype = jnp.result_type(x, *own)
        values, scale, bias = (
            one.astype(jnp.promote_types(one.dtype, jnp.float32))
            for one in (x, *(jnp.expand_dims(one, axes) for one in own))
        )
        if use_running_average:
            mean, var = (jnp.expand_dims(one.value, axes) for one in kept)
            return ((values - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias).astype(dtype)
        y, *seen = normalized(values, scale, bias, self.epsilon)
        if not self.is_initializing():
            for one, now in zip(kept, seen, strict=True):
                one.value = self.momentum * one.value + (1 - self.momentum) * jax.lax.stop_gradient(now.reshape(-1))
        return y.astype(dtype)


@jax.custom_vjp
def normalized(
    x: Float[Array, "... C"], scale: Float[Array, "... C"], bias: Float[Array, "... C"], epsilon: float
) -> tuple[Float[Array, "... C"], Float[Array, "... C"], Float[Array, "... C"]]:
    """Return ``x`` normalised by its own mean and variance (Ioffe and Szegedy, arXiv 1502.03167), and these.

    No gradient is taken of the latter two. The variance is the mean of the squares less the square of the mean, in one
    pass, as in ``nn.BatchNorm``.
    """
    return _forward(x, scale, bias, epsilon)[0]


def _forward(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[tuple[Array, Array, Array], Any]:
    places = x.size // x.shape[-1]
    mean = total(x) / places
    var = jnp.maximum(0.0, total(x * x) / places - mean * mean)
    root = jax.lax.rsqrt(var + epsilon)
    return ((x - mean) * (root * scale) + bias, mean, var), (x, mean, root, scale)


def _backward(known: Any, slopes: tuple[Array, Array, Array]) -> tuple[Array, Array, Array, None]:
    """Return the gradients: of ``x``, the slope less its mean and less its share along the normalised values."""
    x, mean, root, scale = known
    slope, places = slopes[0], x.size // x.shape[-1]
    standard = (x - mean) * root
    bias, along = total(slope), total(slope * standard)
    return (root * scale) * (slope - bias / places - standard * (along / places)), along, bias, None


normalized.defvjp(_forward, _backward)

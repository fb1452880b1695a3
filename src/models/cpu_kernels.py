"""Operations written out by hand because XLA (jax 0.10) computes the usual form slowly on a CPU.

Each has the values of the usual form up to rounding, and states what would make it unnecessary. On a GPU the sums and
the convolutions fall back to XLA's own. ``docs/performance.md`` has measurements (``benchmarks/convolution.py``).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jaxtyping import Array, Float

# --- elementwise functions -------------------------------------------------------------------------------------------


def hashed_bits(seeds: Array, shape: tuple[int, ...]) -> Array:
    """Return 32 random bits for each element of an array, as a hash of its index: for dropout masks.

    A counter and three xor-shift-multiply rounds, some thirty times cheaper than ``jax.random.bits``. Unnecessary once
    that costs less than the layer that drops. ``seeds``: two random 32-bit words; an array has at most 2**32 elements.
    """
    h = jax.lax.iota(jnp.uint32, math.prod(shape)) * jnp.uint32(0x9E3779B9) + seeds[0]
    for factor in (0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F):
        h = (h ^ (h >> 16)) * jnp.uint32(factor) + seeds[1]
    return (h ^ (h >> 15)).reshape(shape)


def gelu(x: Array) -> Array:
    """Return ``x Phi(x)``, Phi of the standard normal distribution (Hendrycks and Gimpel, arXiv 1606.08415).

    Unnecessary once ``jax.nn.gelu(x, approximate=False)`` takes ``erf``: it takes ``erfc``, which has one branch more.
    """
    return 0.5 * x * (1.0 + jax.lax.erf(x * jnp.asarray(0.5**0.5, x.dtype)))


# --- sums over all axes but the last ---------------------------------------------------------------------------------

ROWS = 8  # of ones: a product with a single row of ones is summed element by element, which loses digits


def sum_leading_axes(x: Float[Array, "... C"]) -> Float[Array, "... C"]:
    """Return ``x.sum(axes, keepdims=True)`` over all axes but the last; on a CPU as a product with ones.

    Unnecessary once XLA's sum reads memory in order: it is some ten times slower than the product.
    """
    axes = tuple(range(x.ndim - 1))
    if jax.default_backend() != "cpu":
        return x.sum(axes, keepdims=True)
    flat = x.reshape(-1, x.shape[-1])
    return jnp.expand_dims(jnp.dot(jnp.ones((ROWS, len(flat)), flat.dtype), flat)[0], axes)


@jax.custom_vjp
def add_bias(x: Float[Array, "... C"], bias: Float[Array, " C"]) -> Float[Array, "... C"]:
    """Return ``x + bias``; the gradient of ``bias`` is :func:`sum_leading_axes`. Unnecessary when that is."""
    return x + bias.reshape((1,) * (x.ndim - 1) + (-1,)).astype(x.dtype)


def _add_bias_fwd(x: Array, bias: Array) -> tuple[Array, Array]:
    return add_bias(x, bias), bias


def _add_bias_bwd(bias: Array, grad: Array) -> tuple[Array, Array]:
    wide = grad.astype(jnp.promote_types(bias.dtype, jnp.float32))
    return grad, sum_leading_axes(wide).reshape(-1).astype(bias.dtype)


add_bias.defvjp(_add_bias_fwd, _add_bias_bwd)


# --- convolutions ----------------------------------------------------------------------------------------------------

Padding = tuple[tuple[int, int], tuple[int, int]]


def convolve(
    x: Float[Array, "N H W C"],
    kernel: Float[Array, "kh kw C D"],
    strides: Sequence[int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
    **_: Any,
) -> Float[Array, "N h w D"]:
    """Return a zero-padded convolution: the ``conv_general_dilated`` of ``nn.Conv``, without dilation and groups.

    Non-overlapping windows (the patches of a vision transformer) are one matrix product. On a CPU, bfloat16 is
    multiplied and summed as float32. Unnecessary once XLA has fast CPU kernels for convolutions inside loops in every
    order of axes: it has them for (batch, places, channels) only, and derived gradients, which have other orders, take
    5 to 80 times as long.
    """
    (kh, kw), (down, across) = kernel.shape[:2], strides
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (kh, kw), strides, padding) if isinstance(padding, str) else padding
    if (kh, kw) == (down, across) and not any(map(any, pads)):
        height, width = x.shape[1] // kh, x.shape[2] // kw
        windows = x[:, : height * kh, : width * kw].reshape(-1, height, kh, width, kw, x.shape[-1])
        flat = windows.swapaxes(2, 3).reshape(-1, height, width, kh * kw * x.shape[-1])
        return flat @ kernel.reshape(-1, kernel.shape[-1])
    (top, bottom), (left, right) = pads
    settings = (down, across), ((top, bottom), (left, right))
    if jax.default_backend() != "cpu":
        return conv_nhwc(x, kernel, *settings)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.asarray(conv_nhwc_vjp(x.astype(dtype), kernel.astype(dtype), *settings), x.dtype)


def conv_nhwc(
    x: Array,
    kernel: Array,
    strides: tuple[int, int],
    padding: Any,
    lhs_dilation: tuple[int, int] = (1, 1),
    rhs_dilation: tuple[int, int] = (1, 1),
) -> Array:
    """Return XLA's convolution in the order (batch, height, width, channels)."""
    return jax.lax.conv_general_dilated(
        x, kernel, strides, padding, lhs_dilation, rhs_dilation, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def conv_nhwc_vjp(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> Array:
    """Return :func:`conv_nhwc`; its gradients are computed by :func:`conv_nhwc` too."""
    return conv_nhwc(x, kernel, strides, padding)


def _conv_fwd(x: Array, kernel: Array, strides: tuple[int, int], padding: Padding) -> tuple[Array, tuple[Array, Array]]:
    return conv_nhwc(x, kernel, strides, padding), (x, kernel)


def _conv_bwd(
    strides: tuple[int, int], padding: Padding, residuals: tuple[Array, Array], grad: Float[Array, "N h w D"]
) -> tuple[Array, Array]:
    """Return the gradients: of ``x``, ``grad`` with the flipped kernel; of the kernel, ``x`` with ``grad``."""
    x, kernel = residuals
    spans = [(n - 1) * stride + 1 for n, stride in zip(grad.shape[1:3], strides, strict=True)]
    sides = list(zip(x.shape[1:3], kernel.shape[:2], padding, spans, strict=True))
    pad_x = [(size - 1 - low, n + low - span) for n, size, (low, _), span in sides]
    pad_kernel = [(low, span + size - 1 - n - low) for n, size, (low, _), span in sides]
    grad_x = conv_nhwc(grad, kernel[::-1, ::-1].swapaxes(2, 3), (1, 1), pad_x, lhs_dilation=strides)
    # Without the barrier XLA fuses the computation of x into its transposition, which is slow.
    x, grad = jax.lax.optimization_barrier((x, grad))
    grad_kernel = conv_nhwc(
        x.transpose(3, 1, 2, 0), grad.transpose(1, 2, 0, 3), (1, 1), pad_kernel, rhs_dilation=strides
    )
    return grad_x, grad_kernel.transpose(1, 2, 0, 3)


conv_nhwc_vjp.defvjp(_conv_fwd, _conv_bwd)


# --- batch normalisation ---------------------------------------------------------------------------------------------


class BatchNorm(nn.BatchNorm):
    """``nn.BatchNorm`` over the last axis, with other kernels for the batch statistics and their gradients.

    Unnecessary once XLA sums over leading axes quickly: derived from ``nn.BatchNorm``, they take five times as long.
    """

    momentum: float = 0.9
    epsilon: float = 1e-5

    @nn.compact
    def __call__(
        self, x: Float[Array, "... C"], use_running_average: bool | None = None, *, mask: Array | None = None
    ) -> Float[Array, "... C"]:
        """Return ``x`` normalised by the running statistics, or by the batch's, which update the running ones."""
        if mask is not None:
            raise ValueError("mask is not supported by this BatchNorm; allowed: None")
        width, axes = x.shape[-1:], tuple(range(x.ndim - 1))
        running = (
            self.variable("batch_stats", "mean", jnp.zeros, width),
            self.variable("batch_stats", "var", jnp.ones, width),
        )
        affine = (
            self.param("scale", self.scale_init, width, self.param_dtype),
            self.param("bias", self.bias_init, width, self.param_dtype),
        )
        dtype = jnp.result_type(x, *affine)
        values, scale, bias = (
            array.astype(jnp.promote_types(array.dtype, jnp.float32))
            for array in (x, *(jnp.expand_dims(param, axes) for param in affine))
        )
        if use_running_average:
            mean, var = (jnp.expand_dims(variable.value, axes) for variable in running)
            return ((values - mean) * (jax.lax.rsqrt(var + self.epsilon) * scale) + bias).astype(dtype)
        y, *batch = batch_norm(values, scale, bias, self.epsilon)
        if not self.is_initializing():
            for variable, now in zip(running, batch, strict=True):
                update = (1 - self.momentum) * jax.lax.stop_gradient(now.reshape(-1))
                variable.value = self.momentum * variable.value + update
        return y.astype(dtype)


@jax.custom_vjp
def batch_norm(
    x: Float[Array, "... C"], scale: Float[Array, "... C"], bias: Float[Array, "... C"], epsilon: float
) -> tuple[Float[Array, "... C"], Float[Array, "... C"], Float[Array, "... C"]]:
    """Return ``x`` normalised by its mean and variance (arXiv 1502.03167), and the two, which have no gradient."""
    return _batch_norm_fwd(x, scale, bias, epsilon)[0]


def _batch_norm_fwd(x: Array, scale: Array, bias: Array, epsilon: float) -> tuple[tuple[Array, Array, Array], Any]:
    count = x.size // x.shape[-1]
    mean = sum_leading_axes(x) / count
    var = jnp.maximum(0.0, sum_leading_axes(x * x) / count - mean * mean)
    inverse = jax.lax.rsqrt(var + epsilon)
    return ((x - mean) * (inverse * scale) + bias, mean, var), (x, mean, inverse, scale)


def _batch_norm_bwd(residuals: Any, grads: tuple[Array, Array, Array]) -> tuple[Array, Array, Array, None]:
    """Return the gradients of ``x``, ``scale`` and ``bias``."""
    x, mean, inverse, scale = residuals
    grad, count = grads[0], x.size // x.shape[-1]
    standard = (x - mean) * inverse
    grad_bias, grad_scale = sum_leading_axes(grad), sum_leading_axes(grad * standard)
    grad_x = (inverse * scale) * (grad - grad_bias / count - standard * (grad_scale / count))
    return grad_x, grad_scale, grad_bias, None


batch_norm.defvjp(_batch_norm_fwd, _batch_norm_bwd)

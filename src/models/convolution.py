"""Convolutions as a processor computes them quickly inside a compiled loop: in canonical form, forward and backward.

A training loop is compiled as one program. Of the convolutions inside a loop, XLA (jax 0.10) hands those to its quick
kernels that have batch, places and channels in this order, and those of a derived gradient have not: they took 5 to 80
times as long. So the gradients are written here, with the transpositions outside of the convolution.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

Pads = tuple[tuple[int, int], tuple[int, int]]


def convolve(
    x: Float[Array, "N H W C"],
    kernel: Float[Array, "kh kw C D"],
    strides: Sequence[int] = (1, 1),
    padding: str | Sequence[tuple[int, int]] = "SAME",
    **_: Any,
) -> Float[Array, "N h w D"]:
    """Return a convolution, padded with zeros; for ``nn.Conv``.

    Windows that lie side by side, the patches of an image, take one product. On a processor, bfloat16 is multiplied and
    summed as float32, for which there are kernels.

    Args:
        x: images.
        kernel: as ``nn.Conv`` has it.
        strides: of the windows, down and across.
        padding: lines of zeros before and after, down and across, or a word that XLA has for them.
        _: what ``nn.Conv`` says of dilation and groups, which are its defaults.
    """
    (kh, kw), (down, across) = kernel.shape[:2], strides
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (kh, kw), strides, padding) if isinstance(padding, str) else padding
    if (kh, kw) == (down, across) and not any(map(any, pads)):
        height, width = x.shape[1] // kh, x.shape[2] // kw
        windows = x[:, : height * kh, : width * kw].reshape(-1, height, kh, width, kw, x.shape[-1])
        return windows.swapaxes(2, 3).reshape(-1, height, width, kh * kw * x.shape[-1]) @ kernel.reshape(
            -1, kernel.shape[-1]
        )
    (top, bottom), (left, right) = pads
    own = (down, across), ((top, bottom), (left, right))
    if jax.default_backend() != "cpu":
        return canonical(x, kernel, *own)
    dtype = jnp.promote_types(x.dtype, jnp.float32)
    return jnp.asarray(both_ways(x.astype(dtype), kernel.astype(dtype), *own), x.dtype)


def canonical(
    x: Array, kernel: Array, strides: tuple[int, int], pads: Any, spread: tuple[int, int] = (1, 1), apart: Any = (1, 1)
) -> Array:
    """Return XLA's convolution of ``x``, ``spread`` with zeros in between, and a kernel whose places lie ``apart``."""
    return jax.lax.conv_general_dilated(
        x, kernel, strides, pads, spread, apart, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def both_ways(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """Return the convolution; its gradients are convolutions in canonical form too."""
    return canonical(x, kernel, strides, pads)


def _forward(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> tuple[Array, tuple[Array, Array]]:
    return canonical(x, kernel, strides, pads), (x, kernel)


def _backward(
    strides: tuple[int, int], pads: Pads, known: tuple[Array, Array], slope: Float[Array, "N h w D"]
) -> tuple[Array, Array]:
    """Return both gradients: of ``x``, the slopes by the kernel turned round; of the kernel, ``x`` by the slopes."""
    x, kernel = known
    spans = [(n - 1) * stride + 1 for n, stride in zip(slope.shape[1:3], strides, strict=True)]
    sides = list(zip(x.shape[1:3], kernel.shape[:2], pads, spans, strict=True))
    around = [(size - 1 - low, n + low - span) for n, size, (low, _), span in sides]
    beside = [(low, span + size - 1 - n - low) for n, size, (low, _), span in sides]
    back = canonical(slope, kernel[::-1, ::-1].swapaxes(2, 3), (1, 1), around, spread=strides)
    # Behind a barrier, or what x is computed from is computed again within the transposition, which is slow.
    whole = jax.lax.optimization_barrier((x, slope))
    own = canonical(whole[0].transpose(3, 1, 2, 0), whole[1].transpose(1, 2, 0, 3), (1, 1), beside, apart=strides)
    return back, own.transpose(1, 2, 0, 3)


both_ways.defvjp(_forward, _backward)

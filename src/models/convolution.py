"""Convolutions as a processor computes them quickly inside a compiled loop: in canonical form, part by part of a batch.

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
# Of a part's larger maps: 1 MB, which stays in a core's cache from one convolution's copy of it to its product. A whole
# batch took up to twice as long, and so did less: the kernel is read anew for each part.
VALUES_AT_ONCE = 2**18


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
    return jnp.asarray(in_parts(x.astype(dtype), kernel.astype(dtype), *own), x.dtype)


def canonical(
    x: Array, kernel: Array, strides: tuple[int, int], pads: Any, spread: tuple[int, int] = (1, 1), apart: Any = (1, 1)
) -> Array:
    """Return XLA's convolution of ``x``, ``spread`` with zeros in between, and a kernel whose places lie ``apart``."""
    return jax.lax.conv_general_dilated(
        x, kernel, strides, pads, spread, apart, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def in_parts(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> Array:
    """Return the convolution, a part of the batch at a time."""
    most = max(x[0].size, x[0, ..., 0].size // (strides[0] * strides[1]) * kernel.shape[-1])
    found = jax.lax.map(lambda rows: canonical(rows, kernel, strides, pads), parts(x, most))
    return found.reshape(-1, *found.shape[2:])[: len(x)]


def _forward(x: Array, kernel: Array, strides: tuple[int, int], pads: Pads) -> tuple[Array, tuple[Array, Array]]:
    return in_parts(x, kernel, strides, pads), (x, kernel)


def _backward(
    strides: tuple[int, int], pads: Pads, known: tuple[Array, Array], slope: Float[Array, "N h w D"]
) -> tuple[Array, Array]:
    """Return both gradients, convolutions again: of the slopes by the kernel turned round, of ``x`` by the slopes."""
    x, kernel = known
    spans = [(n - 1) * stride + 1 for n, stride in zip(slope.shape[1:3], strides, strict=True)]
    sides = list(zip(x.shape[1:3], kernel.shape[:2], pads, spans, strict=True))
    around = [(size - 1 - low, n + low - span) for n, size, (low, _), span in sides]
    beside = [(low, span + size - 1 - n - low) for n, size, (low, _), span in sides]
    turned = kernel[::-1, ::-1].swapaxes(2, 3)
    most = max(x[0].size, slope[0].size)

    def of_x(rows: Array) -> Array:
        return canonical(rows, turned, (1, 1), around, spread=strides)

    def of_kernel(total: Array, both: tuple[Array, Array]) -> tuple[Array, None]:
        images, slopes = both
        own = canonical(images.transpose(3, 1, 2, 0), slopes.transpose(1, 2, 0, 3), (1, 1), beside, apart=strides)
        return total + own, None

    back = jax.lax.map(of_x, parts(slope, most))
    # Two loops, not one: of a kernel at rest, or of the lowest layer, the other is never run.
    total, _ = jax.lax.scan(
        of_kernel,
        jnp.zeros((x.shape[-1], *kernel.shape[:2], kernel.shape[-1]), x.dtype),
        (parts(x, most), parts(slope, most)),
    )
    return back.reshape(-1, *x.shape[1:])[: len(x)], total.transpose(1, 2, 0, 3)


in_parts.defvjp(_forward, _backward)


def parts(rows: Float[Array, "N H W C"], values: int) -> Float[Array, "P n H W C"]:
    """Return a batch cut into parts of few enough rows, of so many values each.

    Where the parts are not even, the last one has zeros at its end: they are cut off again, or add nothing.
    """
    most = max(1, VALUES_AT_ONCE // values)
    count = -(-len(rows) // most)
    size = -(-len(rows) // count)
    if count * size > len(rows):
        rows = jnp.pad(rows, ((0, count * size - len(rows)), *((0, 0),) * 3))
    return rows.reshape(count, size, *rows.shape[1:])

"""Convolutions of 3 x 3 with fewer multiplications, a part of a batch at a time: what lies in between stays near.

Winograd's F(2 x 2, 3 x 3) as Lavin and Gray have it (arXiv 1509.09308, section 4.1): a square of 2 x 2 outputs sees
4 x 4 inputs; with each row and column of these, and of the kernel, summed in four ways first, 16 products of a channel
by a channel give what takes 36 otherwise. All squares together make 16 products of matrices. The sums add and halve
only, so in float32 the result is as close as that of any other order of summation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

# Of the sums of inputs at a time: 4 MB, what the caches nearest to two cores hold. Those of a whole batch would be four
# times its maps, written to memory and read again.
VALUES_AT_ONCE = 2**20


def suits(shape: Sequence[int], kernel: Sequence[int], strides: Sequence[int], pads: Any) -> bool:
    """Tell whether :func:`winograd` computes this convolution, and pays: 3 x 3 at every place of even sides.

    Of maps as small as 4 x 4 with 512 channels the time goes into the kernel's sums, and nothing is gained. Parts that
    fit into caches are for processors: an accelerator would wait for each.
    """
    if jax.default_backend() != "cpu":
        return False
    same = tuple(kernel[:2]) == (3, 3) and tuple(strides) == (1, 1) and tuple(map(tuple, pads)) == ((1, 1), (1, 1))
    even = shape[1] % 2 == shape[2] % 2 == 0
    return same and even and 4 * shape[1] * shape[2] >= max(kernel[2:])


@jax.custom_vjp
def winograd(x: Float[Array, "N H W C"], kernel: Float[Array, "3 3 C D"]) -> Float[Array, "N H W D"]:
    """Return a convolution of stride 1, with a line of zeros around the images, whose sides are even.

    The gradient by ``x`` is a convolution as well, and that by the kernel takes 16 products too: derived from the sums
    themselves, the squares, which overlap, would have to be added up in memory. Both need ``x`` only.
    """
    sums, (height, width) = of_kernel(kernel), x.shape[1:3]

    def part(x: Array) -> Array:
        found = jnp.matmul(of_images(x), sums).reshape(4, 4, -1, height // 2, width // 2, sums.shape[-1])
        (a, b), (c, d) = both_ways(lambda m: (m[0] + m[1] + m[2], m[1] - m[2] - m[3]), found)
        return jnp.stack([jnp.stack([a, b], axis=3), jnp.stack([c, d], axis=3)], axis=2).reshape(*x.shape[:3], -1)

    whole = jax.lax.map(part, parts(x, sums.shape[-1]))
    return whole.reshape(-1, height, width, sums.shape[-1])[: len(x)]


def _forward(x: Array, kernel: Array) -> tuple[Array, tuple[Array, Array]]:
    return winograd(x, kernel), (x, kernel)


def _backward(known: tuple[Array, Array], slope: Float[Array, "N H W D"]) -> tuple[Array, Array]:
    x, kernel = known

    def part(total: Array, rows: tuple[Array, Array]) -> tuple[Array, None]:
        images, slopes = rows
        return total + jnp.matmul(of_images(images).swapaxes(1, 2), of_slopes(slopes)), None

    sums, back = jax.vjp(of_kernel, kernel)
    cut = parts(x, kernel.shape[-1]), parts(slope, kernel.shape[-2])
    of_sums, _ = jax.lax.scan(part, jnp.zeros_like(sums), cut)
    return winograd(slope, kernel[::-1, ::-1].swapaxes(2, 3)), back(of_sums)[0]


winograd.defvjp(_forward, _backward)


def both_ways(sums: Callable[[Any], Sequence[Array]], grid: Any) -> list[list[Array]]:
    """Return the sums of each column's arrays, and then of what that makes of each row."""
    columns = [sums(column) for column in zip(*grid, strict=True)]
    return [list(sums(row)) for row in zip(*columns, strict=True)]


def side_by_side(grid: list[list[Array]]) -> Float[Array, "16 P C"]:
    """Return 4 x 4 arrays as one, their places in a row: one product then serves all, and one program to compile."""
    return jnp.stack([values.reshape(-1, values.shape[-1]) for row in grid for values in row])


def of_images(x: Float[Array, "N H W C"]) -> Float[Array, "16 P C"]:
    """Return the sums of each square's inputs."""
    height, width = x.shape[1:3]
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    inputs = [[x[:, i : i + height - 1 : 2, j : j + width - 1 : 2] for j in range(4)] for i in range(4)]
    return side_by_side(both_ways(lambda d: (d[0] - d[2], d[1] + d[2], d[2] - d[1], d[1] - d[3]), inputs))


def of_slopes(slope: Float[Array, "N H W D"]) -> Float[Array, "16 P D"]:
    """Return what the slopes of each square's outputs are for the products that these are summed from."""
    outputs = [[slope[:, i::2, j::2] for j in range(2)] for i in range(2)]
    return side_by_side(both_ways(lambda y: (y[0], y[0] + y[1], y[0] - y[1], -y[1]), outputs))


def of_kernel(kernel: Float[Array, "3 3 C D"]) -> Float[Array, "16 C D"]:
    """Return the kernel's sums."""
    return side_by_side(both_ways(lambda g: (g[0], (g[0] + g[1] + g[2]) / 2, (g[0] - g[1] + g[2]) / 2, g[2]), kernel))


def parts(x: Float[Array, "N H W C"], others: int) -> Float[Array, "P n H W C"]:
    """Return a batch cut into parts, its sums or those of as many images of ``others`` channels being few enough.

    Where the parts are not even, the last one has zeros at its end: they are cut off again, or add nothing.
    """
    most = max(1, VALUES_AT_ONCE // (4 * x.shape[1] * x.shape[2] * max(x.shape[3], others)))
    count = -(-len(x) // most)
    size = -(-len(x) // count)
    if count * size > len(x):
        x = jnp.pad(x, ((0, count * size - len(x)), *((0, 0),) * 3))
    return x.reshape(count, size, *x.shape[1:])

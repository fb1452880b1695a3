"""Winograd's convolutions against sums that are written down, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src.models import winograd as module
from src.models.layers import convolve
from src.models.winograd import suits, winograd


def drawn(rows, height, width, inner, outer):
    rng = np.random.default_rng(0)
    x, slope = (rng.standard_normal((rows, height, width, c)).astype(np.float32) for c in (inner, outer))
    return x, rng.standard_normal((3, 3, inner, outer)).astype(np.float32), slope


def by_hand(x, kernel, slope):
    """The convolution and, for a slope of its outputs, both gradients, place by place."""
    x, kernel, slope = (np.asarray(values, np.float64) for values in (x, kernel, slope))
    height, width = x.shape[1:3]
    wide = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    outputs, of_x, of_kernel = np.zeros(slope.shape), np.zeros(wide.shape), np.zeros(kernel.shape)
    for i in range(3):
        for j in range(3):
            seen = wide[:, i : i + height, j : j + width]
            outputs += seen @ kernel[i, j]
            of_x[:, i : i + height, j : j + width] += slope @ kernel[i, j].T
            of_kernel[i, j] = np.einsum("nhwc,nhwd->cd", seen, slope)
    return outputs, of_x[:, 1:-1, 1:-1], of_kernel


@pytest.mark.parametrize("values", [2**20, 200])  # one part; parts of two images, the last of them half empty
def test_values_and_gradients(monkeypatch, values):
    monkeypatch.setattr(module, "VALUES_AT_ONCE", values * 4)
    x, kernel, slope = drawn(5, 6, 4, 3, 4)

    @jax.jit
    def both(x, kernel, slope):
        outputs, pull = jax.vjp(winograd, x, kernel)
        return outputs, *pull(slope)

    for found, expected in zip(both(x, kernel, slope), by_hand(x, kernel, slope), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=2e-5)


def test_lanes_with_kernels_of_their_own():
    """As a sweep's lanes see it: the images shared, the kernels not."""
    x, kernel, slope = drawn(3, 4, 4, 2, 3)
    kernels = np.stack([kernel, 2 * kernel[::-1]])

    def both(kernel):
        outputs, pull = jax.vjp(winograd, x, kernel)
        return outputs, *pull(jnp.asarray(slope))

    for lane, found in enumerate(zip(*jax.jit(jax.vmap(both))(kernels), strict=True)):
        for value, expected in zip(found, by_hand(x, kernels[lane], slope), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=2e-5)


@pytest.mark.parametrize(
    ("shape", "kernel", "strides", "pads", "expected"),
    [
        ((2, 8, 8, 256), (3, 3, 256, 256), (1, 1), [(1, 1), (1, 1)], True),
        ((2, 4, 4, 512), (3, 3, 512, 512), (1, 1), [(1, 1), (1, 1)], False),  # the kernel is most of it
        ((2, 7, 8, 3), (3, 3, 3, 8), (1, 1), [(1, 1), (1, 1)], False),
        ((2, 8, 8, 3), (3, 3, 3, 8), (2, 2), [(1, 1), (1, 1)], False),
        ((2, 8, 8, 3), (3, 3, 3, 8), (1, 1), [(0, 0), (0, 0)], False),
        ((2, 8, 8, 3), (1, 1, 3, 8), (1, 1), [(0, 0), (0, 0)], False),
    ],
)
def test_what_it_computes(shape, kernel, strides, pads, expected):
    assert suits(shape, kernel, strides, pads) is expected


def test_convolutions_go_through_it(monkeypatch):
    """A third of the multiplications by XLA's account: 16 for 36, and the sums."""
    x, kernel, _ = drawn(4, 16, 16, 64, 64)

    def flops():
        found = jax.jit(lambda x, kernel: convolve(x, kernel, (1, 1), ((1, 1), (1, 1)))).lower(x, kernel).compile()
        return found.cost_analysis()["flops"]

    own = flops()
    monkeypatch.setattr("src.models.layers.suits", lambda *_: False)
    assert own < 0.6 * flops()

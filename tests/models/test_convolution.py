"""Convolutions and their gradients against sums that are written down, in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src.models.convolution import convolve

SHAPES = [  # kernel, strides, zeros around
    ((3, 3), (1, 1), ((1, 1), (1, 1))),
    ((3, 3), (2, 2), ((1, 1), (1, 1))),
    ((7, 7), (2, 2), ((3, 3), (3, 3))),
    ((1, 1), (1, 1), ((0, 0), (0, 0))),
    ((1, 1), (2, 2), ((0, 0), (0, 0))),
    ((4, 4), (4, 4), ((0, 0), (0, 0))),
    ((2, 3), (2, 1), ((1, 0), (0, 2))),
]


def drawn(size, strides, pads, rows=5):
    """Images whose sides are no multiples of the strides, a kernel, and slopes of the outputs."""
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((rows, 10, 9, 3)), rng.standard_normal((*size, 3, 4))
    sides = [(n + sum(pad) - k) // s + 1 for n, pad, k, s in zip((10, 9), pads, size, strides, strict=True)]
    return tuple(np.asarray(values, np.float32) for values in (x, kernel, rng.standard_normal((rows, *sides, 4))))


def by_hand(x, kernel, slope, strides, pads):
    """The convolution and, for a slope of its outputs, both gradients, place by place."""
    x, kernel, slope = (np.asarray(values, np.float64) for values in (x, kernel, slope))
    wide = np.pad(x, ((0, 0), *pads, (0, 0)))
    outputs, of_x, of_kernel = np.zeros(slope.shape), np.zeros(wide.shape), np.zeros(kernel.shape)
    for i, j in np.ndindex(kernel.shape[:2]):
        at = tuple(slice(k, k + (n - 1) * s + 1, s) for k, n, s in zip((i, j), slope.shape[1:3], strides, strict=True))
        seen = wide[:, at[0], at[1]]
        outputs += seen @ kernel[i, j]
        of_x[:, at[0], at[1]] += slope @ kernel[i, j].T
        of_kernel[i, j] = np.einsum("nhwc,nhwd->cd", seen, slope)
    (top, _), (left, _) = pads
    return outputs, of_x[:, top : top + x.shape[1], left : left + x.shape[2]], of_kernel


@pytest.mark.parametrize(("size", "strides", "pads"), SHAPES)
def test_values_and_gradients(size, strides, pads):
    x, kernel, slope = drawn(size, strides, pads)

    @jax.jit
    def both(x, kernel, slope):
        outputs, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, strides, pads), x, kernel)
        return outputs, *pull(slope)

    for found, expected in zip(both(x, kernel, slope), by_hand(x, kernel, slope, strides, pads), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize(("size", "strides", "pads"), SHAPES[:3])
def test_lanes_with_kernels_of_their_own(size, strides, pads):
    """As a sweep's lanes see it: the images shared, the kernels not."""
    x, kernel, slope = drawn(size, strides, pads)
    kernels = np.stack([kernel, 2 * kernel[::-1]])

    def both(kernel):
        outputs, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, strides, pads), jnp.asarray(x), kernel)
        return outputs, *pull(jnp.asarray(slope))

    for lane, found in enumerate(zip(*jax.jit(jax.vmap(both))(kernels), strict=True)):
        for value, expected in zip(found, by_hand(x, kernels[lane], slope, strides, pads), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=6e-5)


def test_the_gradient_of_each_image_by_itself():
    """As the Fisher information sees it: the kernel shared, the images one by one."""
    size, strides, pads = SHAPES[0]
    x, kernel, slope = drawn(size, strides, pads)

    def own(kernel, image, slope):
        return jnp.sum(convolve(image[None], kernel, strides, pads)[0] * slope)

    found = jax.jit(jax.vmap(jax.grad(own), (None, 0, 0)))(kernel, x, slope)
    for i, gradient in enumerate(found):
        expected = by_hand(x[i : i + 1], kernel, slope[i : i + 1], strides, pads)[2]
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("word", ["SAME", "VALID"])
def test_words_for_padding_mean_what_xla_means_by_them(word):
    x, kernel, _ = drawn((3, 3), (2, 2), ((0, 1), (0, 1)))
    native = jax.lax.conv_general_dilated(x, kernel, (2, 2), word, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(convolve(x, kernel, (2, 2), word), native, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_summed_in_float32():
    x, kernel, _ = (jnp.asarray(values, jnp.bfloat16) for values in drawn(*SHAPES[0]))
    found = convolve(x, kernel, *SHAPES[0][1:])
    exact, *_ = by_hand(x, kernel, np.zeros((5, 10, 9, 4)), *SHAPES[0][1:])
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-5)  # rounded once, at the end


def test_in_a_loop_every_convolution_is_of_the_form_that_has_quick_kernels():
    """Batch, places, channels: of any other, XLA's processor code takes many times as long inside a loop."""
    x, kernel, _ = drawn(*SHAPES[0])

    def update(_, both):
        of = jax.grad(lambda x, kernel: jnp.sum(jnp.tanh(convolve(x, kernel, *SHAPES[0][1:]))), (0, 1))(*both)
        return jax.tree.map(lambda a, b: a - 0.1 * b, both, of)

    program = jax.jit(lambda *both: jax.lax.fori_loop(0, 5, update, both)).lower(x, kernel).compile().as_text()
    lines = [line for line in (program or "").splitlines() if " convolution(" in line]
    assert len(lines) == 3
    assert all("dim_labels=b01f_01io->b01f" in line for line in lines)

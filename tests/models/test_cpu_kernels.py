"""The CPU kernels: convolutions, batch normalisation, sums and random bits against float64 and their usual forms."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn
from scipy.stats import chi2

from src.models.cpu_kernels import BatchNorm, add_bias, batch_norm, convolve, hashed_bits, sum_leading_axes
from src.training.compiled import Compiled

N = 400_000
EPSILON = 1e-5


# --- random bits ---------------------------------------------------------------------------------------------------


def bits_of(key, shape=(N,)):
    return np.asarray(hashed_bits(jax.random.bits(jax.random.PRNGKey(key), (2,)), shape))


@pytest.mark.parametrize("lag", [1, 2, 7, 64, 1000])
def test_neighbours_are_uncorrelated(lag):
    kept = bits_of(5) / 2**32 - 0.5
    correlation = np.mean(kept[:-lag] * kept[lag:]) * 12
    assert abs(correlation) < 4 / np.sqrt(N - lag)


@pytest.mark.parametrize("pair", [(0, 1), (1, 2), (2, 2**31)])
def test_keys_are_independent_of_one_another(pair):
    one, other = (bits_of(key) / 2**32 - 0.5 for key in pair)
    assert abs(np.mean(one * other) * 12) < 4 / np.sqrt(N)


def test_rows_are_uncorrelated():
    """A mask that repeated over a batch would not regularise: rows and columns of a small layer's outputs."""
    mask = (bits_of(9, (500, 800)) >> 31).astype(float) * 2 - 1
    for each, length in ((mask, 800), (mask.T, 500)):
        correlations = each @ each.T / length
        off = correlations[np.triu_indices(len(each), 1)]
        assert np.abs(off).max() < 6 / np.sqrt(length)
        assert abs(off.mean()) < 4 / np.sqrt(len(off) * length)


@pytest.mark.parametrize("byte", range(4))
def test_every_byte_is_uniform(byte):
    """Pearson's chi-square over 256 values; the bounds cut one in ten thousand on either side."""
    seen = np.bincount((bits_of(3) >> (8 * byte)) & 255, minlength=256)
    statistic = np.sum((seen - N / 256) ** 2) / (N / 256)
    assert chi2.ppf(1e-4, 255) < statistic < chi2.ppf(1 - 1e-4, 255)


def test_pairs_of_neighbouring_bytes_are_uniform():
    high = bits_of(4) >> 28
    seen = np.bincount(high[:-1:2] * 16 + high[1::2], minlength=256)
    statistic = np.sum((seen - N / 512) ** 2) / (N / 512)
    assert chi2.ppf(1e-4, 255) < statistic < chi2.ppf(1 - 1e-4, 255)


def test_the_hash_against_python_s_integers():
    seeds = (0x12345678, 0xFEDCBA98)

    def by_hand(place):
        h = (place * 0x9E3779B9 + seeds[0]) % 2**32
        for multiplier in (0x85EBCA6B, 0xC2B2AE35, 0x27D4EB2F):
            h = ((h ^ (h >> 16)) * multiplier + seeds[1]) % 2**32
        return h ^ (h >> 15)

    found = np.asarray(hashed_bits(jnp.array(seeds, jnp.uint32), (3, 5)))
    np.testing.assert_array_equal(found, np.reshape([by_hand(i) for i in range(15)], (3, 5)))


# --- convolutions -------------------------------------------------------------------------------------------------


SHAPES = [  # kernel, strides, zeros around
    ((3, 3), (1, 1), ((1, 1), (1, 1))),
    ((3, 3), (2, 2), ((1, 1), (1, 1))),
    ((7, 7), (2, 2), ((3, 3), (3, 3))),
    ((1, 1), (1, 1), ((0, 0), (0, 0))),
    ((1, 1), (2, 2), ((0, 0), (0, 0))),
    ((4, 4), (4, 4), ((0, 0), (0, 0))),
    ((2, 3), (2, 1), ((1, 0), (0, 2))),
]


def conv_inputs(size, strides, pads, rows=5):
    """Images whose sides are no multiples of the strides, a kernel, and slopes of the outputs."""
    rng = np.random.default_rng(0)
    x, kernel = rng.standard_normal((rows, 10, 9, 3)), rng.standard_normal((*size, 3, 4))
    sides = [(n + sum(pad) - k) // s + 1 for n, pad, k, s in zip((10, 9), pads, size, strides, strict=True)]
    return tuple(np.asarray(values, np.float32) for values in (x, kernel, rng.standard_normal((rows, *sides, 4))))


def conv_float64(x, kernel, slope, strides, pads):
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
def test_a_convolution_and_its_gradients(size, strides, pads):
    x, kernel, slope = conv_inputs(size, strides, pads)

    @jax.jit
    def both(x, kernel, slope):
        outputs, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, strides, pads), x, kernel)
        return outputs, *pull(slope)

    for found, expected in zip(both(x, kernel, slope), conv_float64(x, kernel, slope, strides, pads), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize(("size", "strides", "pads"), SHAPES[:3])
def test_vmapped_kernels_on_shared_images(size, strides, pads):
    """As in a vmapped sweep."""
    x, kernel, slope = conv_inputs(size, strides, pads)
    kernels = np.stack([kernel, 2 * kernel[::-1]])

    def both(kernel):
        outputs, pull = jax.vjp(lambda x, kernel: convolve(x, kernel, strides, pads), jnp.asarray(x), kernel)
        return outputs, *pull(jnp.asarray(slope))

    for run, found in enumerate(zip(*jax.jit(jax.vmap(both))(kernels), strict=True)):
        for value, expected in zip(found, conv_float64(x, kernels[run], slope, strides, pads), strict=True):
            np.testing.assert_allclose(value, expected, rtol=1e-5, atol=6e-5)


def test_the_gradient_of_each_image_by_itself():
    """As in the Fisher information: the kernel is shared."""
    size, strides, pads = SHAPES[0]
    x, kernel, slope = conv_inputs(size, strides, pads)

    def own(kernel, image, slope):
        return jnp.sum(convolve(image[None], kernel, strides, pads)[0] * slope)

    found = jax.jit(jax.vmap(jax.grad(own), (None, 0, 0)))(kernel, x, slope)
    for i, gradient in enumerate(found):
        expected = conv_float64(x[i : i + 1], kernel, slope[i : i + 1], strides, pads)[2]
        np.testing.assert_allclose(gradient, expected, rtol=1e-5, atol=3e-5)


@pytest.mark.parametrize("word", ["SAME", "VALID"])
def test_words_for_padding_mean_what_xla_means_by_them(word):
    x, kernel, _ = conv_inputs((3, 3), (2, 2), ((0, 1), (0, 1)))
    native = jax.lax.conv_general_dilated(x, kernel, (2, 2), word, dimension_numbers=("NHWC", "HWIO", "NHWC"))
    np.testing.assert_allclose(convolve(x, kernel, (2, 2), word), native, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_summed_in_float32():
    x, kernel, _ = (jnp.asarray(values, jnp.bfloat16) for values in conv_inputs(*SHAPES[0]))
    found = convolve(x, kernel, *SHAPES[0][1:])
    exact, *_ = conv_float64(x, kernel, np.zeros((5, 10, 9, 4)), *SHAPES[0][1:])
    assert found.dtype == jnp.bfloat16
    np.testing.assert_allclose(np.asarray(found, np.float64), exact, rtol=2**-8, atol=1e-5)  # rounded once, at the end


def test_in_a_loop_every_convolution_is_of_the_form_that_has_quick_kernels():
    """Batch, places, channels."""
    x, kernel, _ = conv_inputs(*SHAPES[0])

    def update(_, both):
        of = jax.grad(lambda x, kernel: jnp.sum(jnp.tanh(convolve(x, kernel, *SHAPES[0][1:]))), (0, 1))(*both)
        return jax.tree.map(lambda a, b: a - 0.1 * b, both, of)

    program = jax.jit(lambda *both: jax.lax.fori_loop(0, 5, update, both)).lower(x, kernel).compile().as_text()
    lines = [line for line in (program or "").splitlines() if " convolution(" in line]
    assert len(lines) == 3
    assert all("dim_labels=b01f_01io->b01f" in line for line in lines)


# --- sums and batch normalisation ---------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1200, 7), (30, 40, 7), (7,)])
@pytest.mark.parametrize(("dtype", "off"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_the_gradient_of_a_bias_is_the_sum_over_all_places(shape, dtype, off):
    """Against float64, relative to the sum of sizes; values and the gradient of ``x`` have the bits of a plain sum."""
    rng = np.random.default_rng(0)
    x, slope = (jnp.asarray(rng.normal(0.3, 1, shape), dtype) for _ in range(2))
    bias = jnp.asarray(rng.normal(0, 1, 7), dtype)
    y, pull = jax.vjp(add_bias, x, bias)
    of_x, of_bias = pull(slope)
    np.testing.assert_array_equal(y, x + jnp.broadcast_to(bias, shape))
    np.testing.assert_array_equal(of_x, slope)
    assert of_bias.dtype == dtype
    rows = np.asarray(slope, np.float64).reshape(-1, 7)
    np.testing.assert_array_less(np.abs(np.asarray(of_bias, np.float64) - rows.sum(0)), off * np.abs(rows).sum(0))


def norm_inputs(shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0.7, 2.0, shape)
    own = rng.normal(1.0, 0.3, shape[-1]), rng.normal(0.0, 0.3, shape[-1]), rng.normal(0.0, 1.0, shape)
    return tuple(one.astype(np.float32).reshape(-1, shape[-1]) for one in (x, *own))


def norm_float64(x, scale, bias, slope):
    """Values, mean, variance and the three gradients, by the chain rule through mean and variance one by one."""
    x, scale, bias, slope = (one.astype(np.float64) for one in (x, scale, bias, slope))
    mean, var, n = x.mean(0), x.var(0), len(x)
    root = 1 / np.sqrt(var + EPSILON)
    inner = slope * scale
    of_var = (inner * (x - mean)).sum(0) * -0.5 * root**3
    of_mean = -(inner * root).sum(0) + of_var * (-2 * (x - mean)).mean(0)
    of_x = inner * root + of_var * 2 * (x - mean) / n + of_mean / n
    return (x - mean) * root * scale + bias, mean, var, of_x, (slope * (x - mean) * root).sum(0), slope.sum(0)


@pytest.mark.parametrize("shape", [(6, 5, 4, 3), (4, 7), (2, 1), (64, 16, 16, 8)])
def test_batch_normalisation_and_its_gradients(shape):
    x, scale, bias, slope = norm_inputs(shape)

    @jax.jit
    def everything(x, scale, bias, slope):
        y, pull, seen = jax.vjp(
            lambda *of: (lambda y, *s: (y, s))(*batch_norm(*of, EPSILON)), x, scale, bias, has_aux=True
        )
        return y, *seen, *pull(slope)

    for found, expected in zip(everything(x, scale, bias, slope), norm_float64(x, scale, bias, slope), strict=True):
        np.testing.assert_allclose(np.reshape(found, expected.shape), expected, rtol=2e-4, atol=2e-4)


def test_sums_of_many_places_keep_their_digits():
    """Added one after the other in float32, 2^24 ones and more would stay 2^24."""
    values = np.random.default_rng(0).uniform(0, 1, (1 << 21, 3)).astype(np.float32)
    found = Compiled(sum_leading_axes)(values)[0]
    np.testing.assert_allclose(found, values.astype(np.float64).sum(0), rtol=2e-6)


@pytest.mark.parametrize(("dtype", "off"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_stands_for_that_of_flax(dtype, off):
    x = jnp.asarray(norm_inputs((8, 4, 4, 5))[0].reshape(8, 4, 4, 5), dtype)
    own, theirs = BatchNorm(), nn.BatchNorm(momentum=0.9, epsilon=EPSILON)
    variables = own.init(jax.random.key(0), x, use_running_average=False)
    assert jax.tree.map(jnp.shape, variables) == jax.tree.map(
        jnp.shape, theirs.init(jax.random.key(0), x, use_running_average=False)
    )
    variables = jax.tree.map(lambda one: (one + 0.3).astype(dtype), variables)
    for kept in (True, False):
        found, expected = (
            one.apply(variables, x, use_running_average=kept, mutable=["batch_stats"]) for one in (own, theirs)
        )
        assert found[0].dtype == expected[0].dtype
        for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(np.asarray(a, np.float32), np.asarray(b, np.float32), rtol=off, atol=off)


def test_kept_statistics_are_used_to_the_bit_as_in_flax():
    x = jnp.asarray(norm_inputs((8, 4, 4, 5))[0].reshape(8, 4, 4, 5))
    variables = BatchNorm().init(jax.random.key(0), x, use_running_average=True)
    variables = jax.tree.map(lambda one: one + 0.3, variables)
    own, theirs = (
        module.apply(variables, x, use_running_average=True) for module in (BatchNorm(), nn.BatchNorm(momentum=0.9))
    )
    assert own.tobytes() == theirs.tobytes()


def test_runs_in_a_loop_have_the_bits_of_runs_alone():
    """Under vmap the products may be summed in another order."""
    x, scale, bias, slope = norm_inputs((16, 8, 8, 4))

    def gradients(own):
        return jax.grad(lambda own: jnp.vdot(batch_norm(*own, EPSILON)[0], slope))(own)

    runs = tuple(np.stack([one, 2 * one, one - 1]) for one in (x, scale, bias))
    alone = Compiled(gradients)
    expected = [alone(tuple(run[i] for run in runs)) for i in range(3)]
    expected = [np.stack(of) for of in zip(*expected, strict=True)]
    for found, own in zip(Compiled(lambda runs: jax.lax.map(gradients, runs))(runs), expected, strict=True):
        assert np.asarray(found).tobytes() == own.tobytes()
    for found, own in zip(Compiled(jax.vmap(gradients))(runs), expected, strict=True):
        np.testing.assert_allclose(found, own, rtol=1e-5, atol=1e-5)


def test_a_mask_is_refused():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="allowed: None"):
        BatchNorm().init(jax.random.key(0), x, use_running_average=True, mask=jnp.ones((2, 1), bool))

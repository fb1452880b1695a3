"""Dropout (its rate, its mean, that its bits are as good as independent), and a bias whose gradient is a product."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import chi2

from src.models.base import ApplyOptions
from src.models.layers import Dropout, drop, hashed_bits, shifted
from src.models.mlp import Mlp

N = 400_000


def bits_of(key, shape=(N,)):
    return np.asarray(hashed_bits(jax.random.bits(jax.random.PRNGKey(key), (2,)), shape))


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("key", [0, 1, 2])
def test_the_share_of_zeros_and_the_mean(key, rate):
    """Within four deviations of the binomial; what is left is scaled by 1 / (1 - rate)."""
    out = np.asarray(drop(jax.random.PRNGKey(key), jnp.ones(N), rate), np.float64)
    zeros = int((out == 0).sum())
    deviation = np.sqrt(N * rate * (1 - rate))
    assert abs(zeros - N * rate) < 4 * deviation
    np.testing.assert_allclose(np.unique(out), [0, 1 / (1 - rate)], rtol=1e-6)
    assert abs(out.mean() - 1) < 4 * deviation / (N * (1 - rate))


@pytest.mark.parametrize("lag", [1, 2, 7, 64, 1000])
def test_neighbours_are_uncorrelated(lag):
    kept = bits_of(5) / 2**32 - 0.5
    correlation = np.mean(kept[:-lag] * kept[lag:]) * 12
    assert abs(correlation) < 4 / np.sqrt(N - lag)


@pytest.mark.parametrize("pair", [(0, 1), (1, 2), (2, 2**31)])
def test_keys_are_independent_of_one_another(pair):
    one, other = (bits_of(key) / 2**32 - 0.5 for key in pair)
    assert abs(np.mean(one * other) * 12) < 4 / np.sqrt(N)


def test_keys_of_consecutive_updates_are_independent():
    """As the engine makes them: one key with the update's number folded in."""
    keys = [jax.random.fold_in(jax.random.PRNGKey(0), i) for i in range(20)]
    masks = np.stack([np.asarray(drop(key, jnp.ones(20_000), 0.5)) for key in keys]) - 1.0
    correlations = masks @ masks.T / 20_000
    off = correlations[~np.eye(20, dtype=bool)]
    assert np.abs(off).max() < 5 / np.sqrt(20_000)


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


def test_the_ends_of_the_rate():
    x = jax.random.normal(jax.random.PRNGKey(1), (1000,))
    np.testing.assert_array_equal(drop(jax.random.PRNGKey(0), x, 0.0), x)
    np.testing.assert_array_equal(drop(jax.random.PRNGKey(0), x, 1.0), jnp.zeros(1000))


def test_one_program_serves_every_rate():
    traces = []

    @jax.jit
    def dropped(rate):
        traces.append(rate)
        return drop(jax.random.PRNGKey(0), jnp.ones(10_000), rate)

    found = {rate: np.asarray(dropped(rate)) for rate in (0.0, 0.25, 0.75, 1.0)}
    assert len(traces) == 1
    for rate, values in found.items():
        np.testing.assert_allclose(values, drop(jax.random.PRNGKey(0), jnp.ones(10_000), rate), rtol=1e-6)
    # The same bits for every rate: what a lower rate drops, a higher one drops too.
    assert np.all(found[0.75][found[0.25] == 0] == 0)


@pytest.mark.parametrize("rate", [0.5, jnp.float32(0.5)])
def test_the_type_stays(rate):
    out = drop(jax.random.PRNGKey(0), jnp.ones(100, jnp.bfloat16), rate)
    assert out.dtype == jnp.bfloat16
    assert set(np.asarray(out, np.float32).tolist()) == {0.0, 2.0}


def test_the_layer_acts_where_there_is_a_key():
    x = jnp.ones((4, 50))
    for rate, rngs in ((0.5, {}), (None, {"dropout": jax.random.PRNGKey(0)})):
        np.testing.assert_array_equal(Dropout(rate).apply({}, x, rngs=rngs), x)
    assert np.any(Dropout(0.5).apply({}, x, rngs={"dropout": jax.random.PRNGKey(0)}) == 0)


def test_two_layers_drop_differently():
    """Identity weights, all-positive inputs: what is zero after the second layer shows both masks."""
    model = Mlp(widths=(500, 500), dropout=0.5)
    eye = {"kernel": jnp.eye(500), "bias": jnp.zeros(500)}
    params = {f"Dense_{i}/{name}": leaf for i in range(3) for name, leaf in eye.items()}
    out = np.asarray(model.apply(params, jnp.ones((40, 500)), 500, ApplyOptions(key=jax.random.PRNGKey(0))))
    share = np.mean(out != 0)  # a quarter if independent, a half if the masks were the same
    assert abs(share - 0.25) < 4 * np.sqrt(0.25 * 0.75 / out.size)
    assert set(np.unique(out).tolist()) == {0.0, 4.0}


@pytest.mark.parametrize("shape", [(1200, 7), (30, 40, 7), (7,)])
@pytest.mark.parametrize(("dtype", "off"), [(jnp.float32, 1e-6), (jnp.bfloat16, 2e-2)])
def test_the_gradient_of_a_bias_is_the_sum_over_all_places(shape, dtype, off):
    """Against float64, relative to the sum of sizes; values and their own gradient have the bits of a plain sum."""
    rng = np.random.default_rng(0)
    x, slope = (jnp.asarray(rng.normal(0.3, 1, shape), dtype) for _ in range(2))
    bias = jnp.asarray(rng.normal(0, 1, 7), dtype)
    y, pull = jax.vjp(shifted, x, bias)
    of_x, of_bias = pull(slope)
    np.testing.assert_array_equal(y, x + jnp.broadcast_to(bias, shape))
    np.testing.assert_array_equal(of_x, slope)
    assert of_bias.dtype == dtype
    rows = np.asarray(slope, np.float64).reshape(-1, 7)
    np.testing.assert_array_less(np.abs(np.asarray(of_bias, np.float64) - rows.sum(0)), off * np.abs(rows).sum(0))

"""Dropout: its rate, its mean, and that layers, updates and rates have the masks they should."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src.models.base import ApplyOptions
from src.models.layers import Dropout, dropout
from src.models.mlp import Mlp

N = 400_000


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.parametrize("key", [0, 1, 2])
def test_the_share_of_zeros_and_the_mean(key, rate):
    """Within four deviations of the binomial; what is left is scaled by 1 / (1 - rate)."""
    out = np.asarray(dropout(jax.random.PRNGKey(key), jnp.ones(N), rate), np.float64)
    zeros = int((out == 0).sum())
    deviation = np.sqrt(N * rate * (1 - rate))
    assert abs(zeros - N * rate) < 4 * deviation
    np.testing.assert_allclose(np.unique(out), [0, 1 / (1 - rate)], rtol=1e-6)
    assert abs(out.mean() - 1) < 4 * deviation / (N * (1 - rate))


def test_keys_of_consecutive_updates_are_independent():
    """As the engine makes them: one key with the update's number folded in."""
    keys = [jax.random.fold_in(jax.random.PRNGKey(0), i) for i in range(20)]
    masks = np.stack([np.asarray(dropout(key, jnp.ones(20_000), 0.5)) for key in keys]) - 1.0
    correlations = masks @ masks.T / 20_000
    off = correlations[~np.eye(20, dtype=bool)]
    assert np.abs(off).max() < 5 / np.sqrt(20_000)


def test_the_ends_of_the_rate():
    x = jax.random.normal(jax.random.PRNGKey(1), (1000,))
    np.testing.assert_array_equal(dropout(jax.random.PRNGKey(0), x, 0.0), x)
    np.testing.assert_array_equal(dropout(jax.random.PRNGKey(0), x, 1.0), jnp.zeros(1000))


def test_one_program_serves_every_rate():
    traces = []

    @jax.jit
    def dropped(rate):
        traces.append(rate)
        return dropout(jax.random.PRNGKey(0), jnp.ones(10_000), rate)

    found = {rate: np.asarray(dropped(rate)) for rate in (0.0, 0.25, 0.75, 1.0)}
    assert len(traces) == 1
    for rate, values in found.items():
        np.testing.assert_allclose(values, dropout(jax.random.PRNGKey(0), jnp.ones(10_000), rate), rtol=1e-6)
    # The same bits for every rate: what a lower rate drops, a higher one drops too.
    assert np.all(found[0.75][found[0.25] == 0] == 0)


@pytest.mark.parametrize("rate", [0.5, jnp.float32(0.5)])
def test_the_type_stays(rate):
    out = dropout(jax.random.PRNGKey(0), jnp.ones(100, jnp.bfloat16), rate)
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

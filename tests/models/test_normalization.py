"""Batch normalisation: values, statistics and gradients against float64, and against ``nn.BatchNorm``."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from src.models.layers import total
from src.models.normalization import BatchNorm, normalized
from src.training.compiled import Compiled

EPSILON = 1e-5


def drawn(shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.normal(0.7, 2.0, shape)
    own = rng.normal(1.0, 0.3, shape[-1]), rng.normal(0.0, 0.3, shape[-1]), rng.normal(0.0, 1.0, shape)
    return tuple(one.astype(np.float32).reshape(-1, shape[-1]) for one in (x, *own))


def by_hand(x, scale, bias, slope):
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
def test_values_statistics_and_gradients(shape):
    x, scale, bias, slope = drawn(shape)

    @jax.jit
    def everything(x, scale, bias, slope):
        y, pull, seen = jax.vjp(
            lambda *of: (lambda y, *s: (y, s))(*normalized(*of, EPSILON)), x, scale, bias, has_aux=True
        )
        return y, *seen, *pull(slope)

    for found, expected in zip(everything(x, scale, bias, slope), by_hand(x, scale, bias, slope), strict=True):
        np.testing.assert_allclose(np.reshape(found, expected.shape), expected, rtol=2e-4, atol=2e-4)


def test_sums_of_many_places_keep_their_digits():
    """Added one after the other in float32, 2^24 ones and more would stay 2^24."""
    values = np.random.default_rng(0).uniform(0, 1, (1 << 21, 3)).astype(np.float32)
    found = Compiled(total)(values)[0]
    np.testing.assert_allclose(found, values.astype(np.float64).sum(0), rtol=2e-6)


@pytest.mark.parametrize(("dtype", "off"), [(jnp.float32, 1e-5), (jnp.bfloat16, 2e-2)])
def test_stands_for_that_of_flax(dtype, off):
    x = jnp.asarray(drawn((8, 4, 4, 5))[0].reshape(8, 4, 4, 5), dtype)
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
    x = jnp.asarray(drawn((8, 4, 4, 5))[0].reshape(8, 4, 4, 5))
    variables = BatchNorm().init(jax.random.key(0), x, use_running_average=True)
    variables = jax.tree.map(lambda one: one + 0.3, variables)
    own, theirs = (
        module.apply(variables, x, use_running_average=True) for module in (BatchNorm(), nn.BatchNorm(momentum=0.9))
    )
    assert own.tobytes() == theirs.tobytes()


def test_lanes_have_the_bits_of_runs_by_themselves():
    """One by one in a loop, to the bit; side by side the processor may sum its products in another order."""
    x, scale, bias, slope = drawn((16, 8, 8, 4))

    def gradients(own):
        return jax.grad(lambda own: jnp.vdot(normalized(*own, EPSILON)[0], slope))(own)

    lanes = tuple(np.stack([one, 2 * one, one - 1]) for one in (x, scale, bias))
    alone = Compiled(gradients)
    expected = [alone(tuple(lane[i] for lane in lanes)) for i in range(3)]
    expected = [np.stack(of) for of in zip(*expected, strict=True)]
    for found, own in zip(Compiled(lambda lanes: jax.lax.map(gradients, lanes))(lanes), expected, strict=True):
        assert np.asarray(found).tobytes() == own.tobytes()
    for found, own in zip(Compiled(jax.vmap(gradients))(lanes), expected, strict=True):
        np.testing.assert_allclose(found, own, rtol=1e-5, atol=1e-5)


def test_a_mask_is_refused():
    x = jnp.ones((2, 3))
    with pytest.raises(ValueError, match="allowed: None"):
        BatchNorm().init(jax.random.key(0), x, use_running_average=True, mask=jnp.ones((2, 1), bool))

"""Operations of loops: closed forms of products whose number is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src.models.cpu_kernels import convolve
from src.training.compiled import Compiled

X, K = np.ones((5, 7, 11), np.float32), np.ones((11, 11), np.float32)
ONCE = 2 * 7 * 11 * 11  # a product of 7 x 11 by 11 x 11


def flops(function, *args):
    return Compiled(function).cost(*args).flops


def squared(x, k):
    return jnp.sum((x @ k) ** 2)


@pytest.mark.parametrize("times", [1, 5])
def test_a_loop_of_known_length_counts_each_of_its_passes(times):
    found = flops(lambda x, k: jax.lax.map(lambda row: jnp.tanh(row) @ k, x[:times]), X, K)
    assert times * ONCE <= found < times * ONCE * 1.2 + 2000


def test_a_loop_in_a_loop_counts_as_often_as_both():
    def outer(x, k):
        def inner(total, row):
            return jax.lax.scan(lambda t, _: (t @ k + row, None), total, None, length=3)[0], None

        return jax.lax.scan(inner, jnp.zeros((7, 11)), x)[0]

    assert flops(outer, X, K) == pytest.approx(5 * 3 * ONCE, rel=0.2)


def test_a_loop_of_a_number_of_updates_counts_as_one():
    def many(x, k, count):
        return jax.lax.fori_loop(0, count, lambda _, k: k - jax.grad(squared, 1)(x[0], k), k)

    assert flops(many, X, K, np.int32(9)) == pytest.approx(2 * ONCE, rel=0.3)


@pytest.mark.parametrize("strides", [(1, 1), (2, 2)])
@pytest.mark.parametrize("gradient", [False, True])
def test_convolutions_of_parts_count_as_those_of_the_whole(strides, gradient):
    """By XLA's own count of the same convolution of all images at once, where nothing is repeated."""

    def counted(parts):
        def own(x, kernel):
            x = x.reshape(parts, -1, *x.shape[1:])
            return jnp.sum(jax.lax.map(lambda rows: convolve(rows, kernel, strides, ((1, 1), (1, 1))), x) ** 2)

        return flops(jax.grad(own, (0, 1)) if gradient else own, jnp.ones((8, 10, 10, 16)), jnp.ones((3, 3, 16, 24)))

    assert counted(4) == pytest.approx(counted(1), rel=0.05)

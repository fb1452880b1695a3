"""Contrastive losses against float64 NumPy, closed forms and finite differences; temperatures against formulas."""

import dataclasses
import math
from collections import deque

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from src.config.hparams import bind, hyperparameters, static_part
from src.config.schema import typed
from src.errors import UserError
from src.metrics.embeddings import unit
from src.pretraining.contrastive import (
    Shape,
    Temperature,
    check_queue,
    cosine_temperature,
    enqueue,
    init_queue,
    linear_temperature,
    momentum_update,
    nt_xent,
    queue_info_nce,
    queue_similarities,
    similarities,
)
from src.training.compiled import Compiled

# Compiled as a whole: operation by operation would take longer.
loss_of = jax.jit(nt_xent, static_argnames="chunk")
learn_from = jax.jit(jax.value_and_grad(nt_xent, (0, 1)), static_argnames="chunk")


def normal(*shape, seed=0):
    return np.random.default_rng([*shape, seed]).standard_normal(shape).astype(np.float32)


def planted(n=6, dim=5, seed=0):
    """Return two views: noise of a third of what tells samples apart."""
    a = 3.0 * normal(n, dim, seed=seed)
    return a, a + normal(n, dim, seed=seed + 100)


def unit64(z):
    z = np.asarray(z, np.float64)
    return z / np.linalg.norm(z, axis=-1, keepdims=True)


def log_sum_exp(x):
    return x.max() + math.log(np.exp(x - x.max()).sum())


def nt_xent64(a, b, t):
    """Row by row, without a mask: the own embedding is taken out of the list."""
    z, n = unit64(np.concatenate([np.asarray(a, np.float64), np.asarray(b, np.float64)])), len(a)
    losses = []
    for i in range(2 * n):
        scores = z @ z[i] / t
        losses.append(log_sum_exp(np.delete(scores, i)) - scores[(i + n) % (2 * n)])
    return float(np.mean(losses))


def queue64(q, k, queue, t):
    q, k, others = unit64(q), unit64(k), unit64(np.asarray(queue).T)
    losses = []
    for i in range(len(q)):
        scores = np.concatenate([[q[i] @ k[i]], others @ q[i]]) / t
        losses.append(log_sum_exp(scores) - scores[0])
    return float(np.mean(losses))


def differences(function, x, step=1e-6):
    """Return the gradient of a float64 function by central differences."""
    x = np.asarray(x, np.float64)
    grad = np.zeros_like(x)
    for place in np.ndindex(*x.shape):
        shift = np.zeros_like(x)
        shift[place] = step
        grad[place] = (function(x + shift) - function(x - shift)) / (2 * step)
    return grad


# --- NT-Xent -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("temperature", "expected"), [(0.5, 1.98497), (0.07, 5.95224)])
def test_nt_xent_has_known_values(temperature, expected):
    z = np.random.RandomState(0).randn(8, 3)
    assert float(nt_xent(z[:4], z[4:], temperature)) == pytest.approx(expected, abs=6e-6)


@pytest.mark.parametrize("chunk", [None, 4])
@pytest.mark.parametrize("temperature", [0.01, 0.07, 0.5, 5.0])
@pytest.mark.parametrize("n", [2, 6])
def test_nt_xent_in_float64(n, temperature, chunk):
    a, b = planted(n)
    found = float(loss_of(a, b, temperature, chunk=chunk))
    assert found == pytest.approx(nt_xent64(a, b, temperature), rel=1e-5, abs=2e-6 / temperature)
    assert float(loss_of(b, a, temperature, chunk=chunk)) == pytest.approx(found, rel=1e-5, abs=2e-6 / temperature)


@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("n", [1, 4, 100])
def test_all_equal_embeddings_tell_nothing(n, temperature):
    same = np.tile(normal(7), (n, 1))
    assert float(loss_of(same, same, temperature)) == pytest.approx(math.log(2 * n - 1), abs=1e-4)


def test_a_hot_softmax_has_the_loss_of_equal_embeddings():
    a, b = planted(5)
    assert float(nt_xent(a, b, 1e4)) == pytest.approx(math.log(9), abs=1e-3)


@pytest.mark.parametrize("chunk", [None, 1])
def test_a_single_sample_has_nothing_to_be_told_from(chunk):
    a, b = planted(1)
    loss, grads = learn_from(a, b, 0.01, chunk=chunk)
    assert float(loss) == 0.0
    assert not np.any(grads)


@pytest.mark.parametrize("chunk", [None, 4, 5])
@pytest.mark.parametrize("temperature", [0.07, 0.5])
def test_the_gradient_of_nt_xent_by_finite_differences(temperature, chunk):
    a, b = planted(4, 3)
    _, grads = learn_from(a, b, temperature, chunk=chunk)
    expected = (
        differences(lambda x: nt_xent64(x, b, temperature), a),
        differences(lambda x: nt_xent64(a, x, temperature), b),
    )
    for found, wanted in zip(grads, expected, strict=True):
        assert np.abs(wanted).max() > 1e-3
        np.testing.assert_allclose(found, wanted, rtol=1e-3, atol=1e-5)


def test_the_gradient_of_the_temperature_by_finite_differences():
    a, b = planted(4, 3)
    found = jax.jit(jax.grad(nt_xent, 2))(a, b, 0.3)
    expected = differences(lambda t: nt_xent64(a, b, float(t)), 0.3)
    assert float(found) == pytest.approx(float(expected), rel=1e-4)


@pytest.mark.parametrize("chunk", [24, 1000])
def test_chunks_change_nothing(chunk):
    a, b = planted(32, 8)
    whole, whole_grads = learn_from(a, b, 0.1)
    loss, grads = learn_from(a, b, 0.1, chunk=chunk)
    assert float(loss) == pytest.approx(float(whole), rel=1e-6)
    np.testing.assert_allclose(grads, whole_grads, rtol=1e-5, atol=1e-6 * np.abs(whole_grads).max())


def test_chunks_fit_where_the_whole_matrix_does_not():
    """8,192 samples of 128 numbers: by XLA's own account, forward and backward."""
    z = jax.ShapeDtypeStruct((8192, 128), jnp.float32)

    def peak(chunk):
        step = Compiled(jax.value_and_grad(lambda a, b: nt_xent(a, b, 0.1, chunk=chunk), (0, 1)))
        return step.cost(z, z).peak_bytes

    assert peak(None) > 2 * 2**30
    assert peak(512) < 2**30 / 2


@pytest.mark.parametrize("temperature", [0.01, 0.5])
@pytest.mark.parametrize("chunk", [None, 4])
def test_a_vector_of_zeros_does_no_harm(chunk, temperature):
    a, b = planted(4)
    a[1], b[1], b[2] = 0.0, 0.0, 0.0
    loss, grads = learn_from(a, b, temperature, chunk=chunk)
    assert np.isfinite(loss)
    assert np.isfinite(grads).all()
    assert not np.any(grads[0][1])
    assert np.any(grads[0][2])
    zeros = jnp.zeros((4, 5))
    assert float(loss_of(zeros, zeros, temperature)) == pytest.approx(math.log(7), rel=1e-6)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e15])
def test_lengths_do_not_matter(scale):
    a, b = planted(4)
    found = float(loss_of(a * np.float32(scale), b, 0.2))
    assert found == pytest.approx(nt_xent64(a, b, 0.2), rel=1e-5)
    np.testing.assert_allclose(np.linalg.norm(unit(a * np.float32(scale)), axis=1), 1.0, rtol=1e-6)


def test_bfloat16_embeddings_are_compared_in_float32():
    a, b = (jnp.asarray(z, jnp.bfloat16) for z in planted(6))
    found = nt_xent(a, b, 0.05)
    assert found.dtype == jnp.float32
    expected = nt_xent64(np.asarray(a, np.float64), np.asarray(b, np.float64), 0.05)
    assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-5)


def test_one_program_for_every_temperature():
    a, b = planted(4)
    loss = jax.jit(lambda a, b, t: nt_xent(a, b, t, chunk=4))
    for temperature in (0.07, 0.2, 0.5):
        assert float(loss(a, b, temperature)) == pytest.approx(nt_xent64(a, b, temperature), rel=1e-5, abs=1e-5)
    assert loss._cache_size() == 1


def test_lanes_of_chunks():
    """Under ``vmap``, as runs side by side are computed, with a temperature each."""
    pairs = [planted(5, seed=seed) for seed in range(3)]
    a, b = (jnp.stack(views) for views in zip(*pairs, strict=True))
    temperatures = jnp.array([0.1, 0.3, 0.9])
    found = jax.jit(jax.vmap(lambda a, b, t: nt_xent(a, b, t, chunk=4)))(a, b, temperatures)
    expected = [nt_xent64(*pair, float(t)) for pair, t in zip(pairs, temperatures, strict=True)]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_similarities_by_all_pairs():
    a, b = planted(7)
    z, n = unit64(np.concatenate([a, b])), 7
    matrix = z @ z.T
    sample = np.arange(2 * n) % n
    others = sample[:, None] != sample[None, :]
    found = similarities(a, b)
    assert float(found["pos_similarity"]) == pytest.approx(np.diag(matrix[:n, n:]).mean(), rel=1e-5)
    assert float(found["neg_similarity"]) == pytest.approx(matrix[others].mean(), abs=1e-6)
    same = np.ones((5, 4), np.float32)
    assert [float(value) for value in similarities(same, same).values()] == pytest.approx([1.0, 1.0])
    assert float(similarities(a[:1], b[:1])["neg_similarity"]) == 0.0


# --- a queue -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.01, 0.07, 1.0])
def test_queue_info_nce_in_float64(temperature):
    q, k = planted(4)
    queue = normal(5, 12)
    found = float(queue_info_nce(q, k, queue, temperature))
    assert found == pytest.approx(queue64(q, k, queue, temperature), rel=1e-5, abs=2e-6 / temperature)


@pytest.mark.parametrize("size", [1, 64])
@pytest.mark.parametrize("temperature", [0.01, 0.07])
def test_equal_embeddings_are_not_found_in_a_queue(size, temperature):
    one = normal(6)
    rows, queue = np.tile(one, (3, 1)), np.tile(one[:, None], (1, size))
    assert float(queue_info_nce(rows, rows, queue, temperature)) == pytest.approx(math.log(size + 1), abs=1e-4)


def test_only_queries_learn_from_a_queue():
    q, k = planted(4)
    queue = normal(5, 12)
    of_q, of_k, of_queue = jax.jit(jax.grad(queue_info_nce, (0, 1, 2)))(q, k, queue, 0.2)
    np.testing.assert_allclose(of_q, differences(lambda x: queue64(x, k, queue, 0.2), q), rtol=1e-3, atol=1e-5)
    assert not np.any(of_k)
    assert not np.any(of_queue)


def test_a_zero_query_does_no_harm():
    q, k = planted(4)
    q[0], k[1] = 0.0, 0.0
    queue = np.zeros((5, 3), np.float32)
    loss, grad = jax.jit(jax.value_and_grad(queue_info_nce))(q, k, queue, 0.01)
    assert np.isfinite(loss)
    assert np.isfinite(grad).all()
    assert not np.any(grad[0])


def test_similarities_of_a_queue():
    q, k = planted(4)
    queue = normal(5, 12)
    found = queue_similarities(q, k, queue)
    assert float(found["pos_similarity"]) == pytest.approx((unit64(q) * unit64(k)).sum(1).mean(), rel=1e-5)
    assert float(found["neg_similarity"]) == pytest.approx((unit64(q) @ unit64(queue.T).T).mean(), abs=1e-6)


def test_a_queue_begins_with_random_directions():
    queue = np.asarray(init_queue(jax.random.PRNGKey(0), 16, 400))
    assert queue.shape == (16, 400)
    np.testing.assert_allclose(np.linalg.norm(queue, axis=0), 1.0, rtol=1e-6)
    assert np.abs(queue.mean(axis=1)).max() < 0.05  # a standard error is 1 / sqrt(16 * 400) = 0.0125
    np.testing.assert_allclose(queue @ queue.T / 400, np.eye(16) / 16, atol=0.025)


def test_the_oldest_keys_leave_first():
    queue, pointer = init_queue(jax.random.PRNGKey(1), 3, 6), 0
    expected = deque(np.asarray(queue).T, maxlen=6)
    step = jax.jit(enqueue)
    for seed in range(7):
        keys = normal(2, 3, seed=seed)
        queue, pointer = step(queue, keys, pointer)
        expected.extend(unit64(keys))
        oldest_first = np.roll(np.asarray(queue).T, -int(pointer), axis=0)
        np.testing.assert_allclose(oldest_first, np.stack(expected), atol=1e-6)
    assert int(pointer) == 2


def test_a_queue_that_batches_do_not_fill_is_refused():
    check_queue(64, 32)
    message = r"^pretrain.queue_size is 100; allowed: a multiple of batch_size \(32\)$"
    with pytest.raises(UserError, match=message):
        check_queue(100, 32)
    with pytest.raises(UserError, match=r"^pretrain.queue_size is 0; "):
        check_queue(0, 32)
    with pytest.raises(UserError, match=message):
        enqueue(jnp.ones((4, 100)), jnp.ones((32, 4)), 0)


def test_the_key_network_follows_slowly():
    keys = {"Dense_0/kernel": np.float32([1.0, 2.0]), "BatchNorm_0/mean": np.float32([5.0])}
    queries = {"Dense_0/kernel": np.float32([3.0, -2.0]), "BatchNorm_0/mean": np.float32([7.0]), "extra": np.ones(1)}
    found = jax.jit(momentum_update)(keys, queries, 0.75)
    assert set(found) == set(keys)
    np.testing.assert_array_equal(found["Dense_0/kernel"], [1.5, 1.0])
    np.testing.assert_array_equal(found["BatchNorm_0/mean"], [5.0])
    np.testing.assert_array_equal(momentum_update(keys, queries, 1.0)["Dense_0/kernel"], keys["Dense_0/kernel"])
    np.testing.assert_array_equal(momentum_update(keys, queries, 0.0)["Dense_0/kernel"], queries["Dense_0/kernel"])


# --- temperatures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fraction", [0.1, 0.25, 1.0])
@pytest.mark.parametrize("total", [1, 7, 200])
def test_temperatures_in_float64(total, fraction):
    steps = np.arange(total + 3)
    done = np.minimum(steps / (fraction * total), 1.0)
    cosine = 0.07 + 0.5 * (0.5 - 0.07) * (1 + np.cos(np.pi * done))
    np.testing.assert_allclose(cosine_temperature(steps, total, 0.5, 0.07, fraction), cosine, rtol=1e-5)
    linear = np.interp(steps, [0, fraction * total], [0.5, 0.07])
    np.testing.assert_allclose(linear_temperature(steps, total, 0.5, 0.07, fraction), linear, rtol=1e-5)


@pytest.mark.parametrize("schedule", [cosine_temperature, linear_temperature])
def test_a_temperature_begins_hot_is_half_way_and_ends_cold(schedule):
    found = [float(schedule(step, 100, 0.5, 0.07, 0.1)) for step in (0, 5, 10, 99)]
    assert found == pytest.approx([0.5, 0.285, 0.07, 0.07], rel=1e-6)
    assert float(schedule(0, 100, 0.5, 0.07, 0.0)) == pytest.approx(0.07)


def test_the_option_is_its_schedule():
    option = Temperature()
    assert (option.hot, option.cold, option.fraction) == (0.5, 0.07, 0.1)
    for step in (0, 3, 50):
        assert float(option.at(step, 100)) == float(cosine_temperature(step, 100, 0.5, 0.07, 0.1))
        linear = dataclasses.replace(option, shape=Shape.linear)
        assert float(linear.at(step, 100)) == float(linear_temperature(step, 100, 0.5, 0.07, 0.1))
        assert Temperature(Shape.constant, cold=0.3).at(step, 100) == 0.3


def test_the_option_is_traced():
    """Temperatures are arguments of one compiled program; the shape is compiled in."""
    one, other = Temperature(hot=0.5), Temperature(hot=0.9, cold=0.2, fraction=0.5)
    assert static_part(one) == static_part(other) != static_part(Temperature(Shape.linear))
    rate = jax.jit(lambda values, step: bind(static_part(one), values).at(step, 100))
    for option in (one, other):
        assert float(rate(hyperparameters(option), 20)) == pytest.approx(float(option.at(20, 100)), rel=1e-6)
    assert rate._cache_size() == 1


def test_the_option_is_configured():
    found = typed(Temperature, {"shape": "linear", "hot": 1, "fraction": 0}, "pretrain.temperature")
    assert found == Temperature(Shape.linear, hot=1.0, fraction=0.0)
    for values, message in [
        ({"cold": 0}, r"^pretrain.temperature.cold is 0.0; allowed: a finite number > 0$"),
        ({"hot": -0.5}, r"^pretrain.temperature.hot is -0.5; allowed: a finite number > 0$"),
        ({"fraction": 1.5}, r"^pretrain.temperature.fraction is 1.5; allowed: a number from 0 to 1$"),
        ({"shape": "step"}, "pretrain.temperature.shape: Invalid value 'step', expected one of"),
    ]:
        with pytest.raises(UserError, match=message):
            typed(Temperature, values, "pretrain.temperature")


def test_embeddings_that_are_not_numbers_are_no_embeddings_that_are_equal():
    """A network that has diverged: the loss must say so, and not be that of a collapse."""
    z = jnp.asarray(np.random.default_rng(0).normal(size=(4, 3)), jnp.float32).at[1].set(jnp.nan)
    assert np.isnan(float(nt_xent(z, z, 0.5)))
    assert np.isnan(np.asarray(unit(z)[1])).all()
    np.testing.assert_array_equal(unit(jnp.zeros((1, 3))), np.zeros((1, 3)))

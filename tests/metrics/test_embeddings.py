"""Measures of embeddings against float64 NumPy, closed forms, and clouds whose shape is known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import i0, ive

from src.metrics.embeddings import CHUNK, alignment, lidar, rankme, spread, uniformity

RANKME, LIDAR, UNIFORMITY = jax.jit(rankme), jax.jit(lidar), jax.jit(uniformity)


def normal(*shape, seed=0):
    return np.random.default_rng([*shape, seed]).standard_normal(shape).astype(np.float32)


def rank64(spectrum):
    p = spectrum / spectrum.sum() + 1e-7
    return np.exp(-(p * np.log(p)).sum())


def unit64(z):
    z = np.asarray(z, np.float64)
    return z / np.linalg.norm(z, axis=1, keepdims=True)


# --- rank ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(40, 6), (6, 40), (1, 5), (64, 64)])
def test_rankme_in_float64(shape):
    z = normal(*shape) @ normal(shape[1], shape[1]) + 0.5
    expected = rank64(np.linalg.svd(np.asarray(z, np.float64), compute_uv=False))
    assert float(RANKME(z)) == pytest.approx(expected, rel=1e-4)


def test_rankme_where_it_is_known():
    orthogonal = np.linalg.qr(normal(50, 8).astype(np.float64))[0].astype(np.float32)  # covariance I / 50
    assert float(RANKME(orthogonal)) == pytest.approx(8, rel=1e-4)
    assert float(RANKME(orthogonal * 1e4)) == pytest.approx(8, rel=1e-4)
    assert float(RANKME(orthogonal * np.float32([1, 1, 1, 0, 0, 0, 0, 0]))) == pytest.approx(3, rel=1e-4)
    equal = np.tile(normal(8), (50, 1))
    assert float(RANKME(equal)) == pytest.approx(1, abs=1e-3)
    assert float(RANKME(np.zeros((50, 8)))) == pytest.approx(1, abs=1e-3)
    # Shares 3/4 and 1/4: the entropy is log 4 - 3/4 log 3.
    assert float(RANKME(np.diag(np.float32([3, 1])))) == pytest.approx(4 / 3**0.75, rel=1e-5)


def test_rankme_sees_a_collapse_of_dimensions():
    """Of 32 dimensions 4 are used; noise of a thousandth is not taken for more."""
    z = normal(200, 4) @ normal(4, 32) + 1e-3 * normal(200, 32)
    assert 3 < float(RANKME(z)) < 5
    assert float(RANKME(normal(20_000, 32))) > 31.9


def lidar64(z, delta=1e-4):
    """By the definition, with the matrices' roots."""
    z = np.asarray(z, np.float64)
    means = z.mean(axis=1)
    inner, outer = z - means[:, None], means - means.mean(axis=0)
    within = np.einsum("nqi,nqj->ij", inner, inner) / (z.shape[0] * z.shape[1]) + delta * np.eye(z.shape[2])
    between = outer.T @ outer / len(outer)
    values, vectors = np.linalg.eigh(within)
    root = vectors / np.sqrt(values) @ vectors.T
    return rank64(np.maximum(np.linalg.eigvalsh(root @ between @ root), 0))


@pytest.mark.parametrize("shape", [(30, 4, 6), (5, 3, 20), (4, 1, 3), (8, 10, 8)])
@pytest.mark.parametrize("scatter", [0.05, 1.0])
def test_lidar_in_float64(shape, scatter):
    samples, _, dim = shape
    z = normal(samples, 1, dim) * np.linspace(0.1, 2, dim, dtype=np.float32) + scatter * normal(*shape) + 3.0
    assert float(LIDAR(z)) == pytest.approx(lidar64(z), rel=1e-3)


def test_lidar_where_it_is_known():
    """Samples at plus and minus the axes, views at plus and minus the axes around them: all covariances are multiples
    of the identity, so every dimension counts as one."""
    ends = np.concatenate([np.eye(5), -np.eye(5)]).astype(np.float32)
    z = 3 * ends[:, None] + 0.1 * ends[None]
    assert float(LIDAR(z)) == pytest.approx(5, rel=1e-4)
    assert float(LIDAR(z * np.float32([1, 1, 0, 0, 0]))) == pytest.approx(2, rel=1e-4)
    assert float(LIDAR(np.tile(normal(5), (10, 4, 1)))) == pytest.approx(1, abs=1e-3)


def test_lidar_counts_what_tells_samples_apart_where_rankme_counts_all():
    """Two dimensions say which sample it is, thirty only which view: noise that RankMe takes for content."""
    z = np.concatenate([5 * np.repeat(normal(100, 1, 2), 10, axis=1), normal(100, 10, 30)], axis=-1)
    z += 0.1 * normal(100, 10, 32, seed=1)
    assert float(LIDAR(z)) < 3
    assert float(RANKME(z.reshape(-1, 32))) > 20


# --- alignment, uniformity, spread ---------------------------------------------------------------------------------


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_alignment_in_float64(alpha):
    a, b = normal(20, 6), normal(20, 6, seed=1)
    expected = (np.linalg.norm(unit64(a) - unit64(b), axis=1) ** alpha).mean()
    assert float(alignment(a, b, alpha)) == pytest.approx(expected, rel=1e-5)


def test_alignment_where_it_is_known():
    a = normal(20, 6)
    assert float(alignment(a, 7 * a)) == pytest.approx(0, abs=1e-6)
    assert float(alignment(a, -a)) == pytest.approx(4, rel=1e-6)
    assert float(alignment(np.float32([[1, 0]]), np.float32([[0, 3]]))) == pytest.approx(2, rel=1e-6)


def uniformity64(z, t):
    u = unit64(z)
    return np.log(np.mean([np.exp(-t * np.sum((u[i] - u[j]) ** 2)) for i in range(len(u)) for j in range(i)]))


@pytest.mark.parametrize("t", [2.0, 0.5])
def test_uniformity_in_float64(t):
    z = normal(30, 5)
    assert float(uniformity(z, t)) == pytest.approx(uniformity64(z, t), rel=1e-5)


def test_uniformity_where_it_is_known():
    """On a circle ``exp(-2t (1 - cos))`` has the mean ``exp(-2t) I0(2t)``; the own pair is left out of n."""
    n = CHUNK + 500
    angles = 2 * np.pi * np.arange(n) / n
    circle = np.stack([np.cos(angles), np.sin(angles)], 1).astype(np.float32)
    expected = np.log((n * np.exp(-4) * i0(4) - 1) / (n - 1))
    assert float(UNIFORMITY(circle)) == pytest.approx(expected, rel=1e-4)
    assert expected == pytest.approx(np.log(ive(0, 4)), rel=2e-3)
    equal = np.tile(normal(6), (10, 1))
    assert float(UNIFORMITY(equal)) == pytest.approx(0, abs=1e-5)
    opposite = np.float32([[1, 0], [-2, 0]])
    assert float(UNIFORMITY(opposite)) == pytest.approx(-8, rel=1e-5)
    assert float(UNIFORMITY(normal(1000, 128))) == pytest.approx(-4 + 8 / 128, abs=0.01)


def test_spread_in_float64_and_where_it_is_known():
    z = normal(30, 5) + 1
    assert float(spread(z)) == pytest.approx(unit64(z).std(axis=0).mean(), rel=1e-5)
    ends = np.concatenate([np.eye(9), -np.eye(9)]).astype(np.float32)
    assert float(spread(ends)) == pytest.approx(1 / 3, rel=1e-5)
    assert float(spread(normal(2000, 64))) == pytest.approx(1 / 8, rel=1e-2)
    assert float(spread(np.tile(normal(64), (20, 1)))) == pytest.approx(0, abs=1e-6)


def test_a_compiled_monitor_of_bfloat16():
    z = jnp.asarray(normal(40, 2, 8), jnp.bfloat16)
    exact = np.asarray(z, np.float64)

    @jax.jit
    def monitor(z):
        rows = z.reshape(-1, 8)
        return rankme(rows), lidar(z), uniformity(rows), spread(rows), alignment(z[:, 0], z[:, 1])

    found = monitor(z)
    assert all(value.dtype == jnp.float32 for value in found)
    rows = exact.reshape(-1, 8)
    expected = [rank64(np.linalg.svd(rows, compute_uv=False)), lidar64(exact), uniformity64(rows, 2.0)]
    expected.append(unit64(rows).std(axis=0).mean())
    expected.append(((unit64(exact[:, 0]) - unit64(exact[:, 1])) ** 2).sum(1).mean())
    np.testing.assert_allclose(found, expected, rtol=1e-3)

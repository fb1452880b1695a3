"""Geometry of embeddings without labels, in float32 at least: effective rank, alignment, uniformity and spread."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .classification import at_least_float32

EPSILON = 1e-7  # added to shares before taking their logarithm, as in RankMe
CHUNK = 1024  # rows of a matrix of distances at a time
SHORTEST = 1e-12  # a vector below this length is treated as 0, as in PyTorch's `normalize`
PRECISE = jax.lax.Precision.HIGHEST


def rankme(z: Float[Array, "N D"]) -> Float[Array, ""]:
    """Return the effective rank of embeddings, from 1 to ``min(N, D)``.

    Garrido et al. (arXiv 2210.02885): ``exp`` of the entropy of the singular values' shares of their sum.
    Embeddings are neither centred nor normalised: equal embeddings have rank 1, independent dimensions of equal
    variance rank D.
    """
    return effective_rank(jnp.linalg.svd(_triangle(at_least_float32(z)), compute_uv=False))


def lidar(z: Float[Array, "N Q D"], delta: float = 1e-4) -> Float[Array, ""]:
    """Return the effective rank of the differences between samples, in units of the scatter of their views.

    Thilak et al. (arXiv 2312.04000): with ``Sigma_b`` the covariance of the samples' means and ``Sigma_w`` the mean
    covariance of a sample's views plus ``delta`` on the diagonal, the effective rank of the eigenvalues of
    ``Sigma_w^-1/2 Sigma_b Sigma_w^-1/2``; from 1 to ``min(N - 1, D)``. Covariances are means over N and over N * Q. The
    paper takes some 1,000 samples of 50 views.

    No covariance is formed, as squares would lose half of float32's digits: with ``V S^2 V^T`` the covariance of the
    views, the eigenvalues are the squared singular values of the centred means, rotated by V and divided by ``sqrt(S^2
    + delta)``.
    """
    z = at_least_float32(z)
    z = z - z[:1, :1, :]  # keeps covariances, and makes equal embeddings exactly 0
    samples, views, dim = z.shape
    means = jnp.mean(z, axis=1)
    within = (z - means[:, None, :]).reshape(-1, dim) / jnp.sqrt(samples * views)
    between = (means - jnp.mean(means, axis=0, keepdims=True)) / jnp.sqrt(samples)
    _, deviations, directions = jnp.linalg.svd(_triangle(within), full_matrices=True)
    variances = jnp.zeros(dim, z.dtype).at[: len(deviations)].set(jnp.square(deviations)) + delta
    whitened = jnp.matmul(between, directions.T, precision=PRECISE) / jnp.sqrt(variances)[None, :]
    return effective_rank(jnp.square(jnp.linalg.svd(_triangle(whitened), compute_uv=False)))


def effective_rank(spectrum: Float[Array, " D"]) -> Float[Array, ""]:
    """Return ``exp`` of the entropy of a spectrum's shares (Roy and Vetterli 2007); 1 if all are 0."""
    total = jnp.sum(spectrum)
    shares = spectrum / jnp.where(total > 0, total, 1.0) + EPSILON
    return jnp.exp(-jnp.sum(shares * jnp.log(shares)))


def alignment(z_a: Float[Array, "N D"], z_b: Float[Array, "N D"], alpha: float = 2.0) -> Float[Array, ""]:
    """Return the mean distance of two views of a sample to the power ``alpha``.

    Wang and Isola (arXiv 2005.10242, section 4.1), for normalised embeddings: 0 for equal views, 2 for unrelated ones
    and 4 for opposite ones at ``alpha = 2``.
    """
    return jnp.mean(jnp.sum(jnp.square(unit(z_a) - unit(z_b)), axis=-1) ** (alpha / 2))


def uniformity(z: Float[Array, "N D"], t: float = 2.0) -> Float[Array, ""]:
    """Return the uniformity of normalised embeddings: 0 if all are equal, lower for a more even distribution.

    Wang and Isola (arXiv 2005.10242, section 4.1): the logarithm of the mean of ``exp(-t * distance**2)`` over all
    pairs of different rows. In D dimensions the best value is about ``-2 * t + 2 * t**2 / D``. Needs at
    least two rows.
    """
    z = unit(z)
    places, lengths = jnp.arange(len(z)), jnp.sum(jnp.square(z), axis=-1)

    def row_sum(row: tuple[Array, Array]) -> Array:
        embedding, place = row
        squares = lengths + lengths[place] - 2.0 * jnp.matmul(z, embedding, precision=PRECISE)
        return jnp.sum(jnp.where(places == place, 0.0, jnp.exp(-t * squares)))

    return jnp.log(jnp.sum(jax.lax.map(row_sum, (z, places), batch_size=CHUNK)) / (len(z) * (len(z) - 1)))


def spread(z: Float[Array, "N D"]) -> Float[Array, ""]:
    """Return the mean over dimensions of the standard deviation of normalised embeddings.

    Chen and He (arXiv 2011.10566, section 4.1): 0 if all are equal, ``1 / sqrt(D)`` for a uniform distribution.
    """
    return jnp.mean(jnp.std(unit(z), axis=0))


def _triangle(z: Float[Array, "N D"]) -> Float[Array, "M D"]:
    """Return R of the QR decomposition: at most D rows with the singular values and right vectors of ``z``."""
    return jnp.linalg.qr(z, mode="r")


def unit(z: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """Return each vector divided by its length; vectors shorter than ``SHORTEST`` become 0 and have no gradient.

    Vectors that are not finite stay so: a run that diverges must not look like one that has collapsed.
    """
    z = at_least_float32(z)
    squares = jnp.sum(jnp.square(z), axis=-1, keepdims=True)
    nonzero = ~(squares <= SHORTEST**2)  # true for NaN
    # Both branches of a `where` are differentiated, so the one not taken must be finite too.
    return jnp.where(nonzero, z / jnp.sqrt(jnp.where(nonzero, squares, 1.0)), 0.0)

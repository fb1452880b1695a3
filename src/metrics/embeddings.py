"""What embeddings look like as a cloud of points: how many directions they fill, how close views are, how far the rest.

Pure functions of arrays that can be compiled into a monitor; they compute in float32 at least. None needs labels.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from .classification import at_least_float32

EPSILON = 1e-7  # added to shares before their logarithm is taken, as in RankMe
CHUNK = 1024  # rows of a matrix of distances at a time


def rankme(z: Float[Array, "N D"]) -> Float[Array, ""]:
    """Return the effective rank of embeddings, from 1 to ``min(N, D)``.

    Garrido et al. (arXiv 2210.02885): ``exp`` of the entropy of the singular values' shares of their sum.
    Neither centred nor normalised: embeddings that are all equal have rank 1, of independent dimensions of one
    variance D.
    """
    return effective_rank(jnp.linalg.svd(_triangle(at_least_float32(z)), compute_uv=False))


def lidar(z: Float[Array, "N Q D"], delta: float = 1e-4) -> Float[Array, ""]:
    """Return the effective rank of what tells samples apart, measured in units of how far their views scatter.

    Thilak et al. (arXiv 2312.04000): with ``Sigma_b`` the covariance of the samples' means and ``Sigma_w``
    the mean covariance of a sample's views plus ``delta`` on the diagonal, the effective rank of the eigenvalues of
    ``Sigma_w^-1/2 Sigma_b Sigma_w^-1/2``; from 1 to ``min(N - 1, D)``. Covariances are means over N and over N * Q.
    The paper takes some 1,000 samples of 50 views.

    No covariance is formed, since squares would lose half of float32's digits: with ``V S^2 V^T`` that of the views,
    the eigenvalues are the squared singular values of the centred means, turned by V and divided by
    ``sqrt(S^2 + delta)``.

    Args:
        z: embeddings of Q views of N samples.
        delta: variance that every direction has at least.
    """
    z = at_least_float32(z)
    z = z - z[:1, :1, :]  # covariances do not change, and equal embeddings become exactly 0 instead of noise
    samples, views, dim = z.shape
    means = jnp.mean(z, axis=1)
    within = (z - means[:, None, :]).reshape(-1, dim) / jnp.sqrt(samples * views)
    between = (means - jnp.mean(means, axis=0, keepdims=True)) / jnp.sqrt(samples)
    _, deviations, directions = jnp.linalg.svd(_triangle(within), full_matrices=True)
    variances = jnp.zeros(dim, z.dtype).at[: len(deviations)].set(jnp.square(deviations)) + delta
    whitened = jnp.matmul(between, directions.T, precision=PRECISE) / jnp.sqrt(variances)[None, :]
    return effective_rank(jnp.square(jnp.linalg.svd(_triangle(whitened), compute_uv=False)))


def effective_rank(spectrum: Float[Array, " D"]) -> Float[Array, ""]:
    """Return ``exp`` of the entropy of a spectrum's shares (Roy and Vetterli 2007); 1 if it is 0 throughout."""
    total = jnp.sum(spectrum)
    shares = spectrum / jnp.where(total > 0, total, 1.0) + EPSILON
    return jnp.exp(-jnp.sum(shares * jnp.log(shares)))


def alignment(z_a: Float[Array, "N D"], z_b: Float[Array, "N D"], alpha: float = 2.0) -> Float[Array, ""]:
    """Return how far apart the two views of a sample are: the mean of their distance to the power ``alpha``.

    Wang and Isola (arXiv 2005.10242, section 4.1), of embeddings of length 1: 0 for equal views, 2 for unrelated ones
    and 4 for opposite ones at ``alpha = 2``.
    """
    return jnp.mean(jnp.sum(jnp.square(unit(z_a) - unit(z_b)), axis=-1) ** (alpha / 2))


def uniformity(z: Float[Array, "N D"], t: float = 2.0) -> Float[Array, ""]:
    """Return how evenly embeddings of length 1 cover the sphere; 0 if all are equal, the lower the more evenly.

    Wang and Isola (arXiv 2005.10242, section 4.1): the logarithm of the mean of ``exp(-t * distance**2)`` over all
    pairs of different rows. In many dimensions it comes close to ``-2 * t``, in D the best is about
    ``-2 * t + 2 * t**2 / D``. Needs two rows.
    """
    z = unit(z)
    places, lengths = jnp.arange(len(z)), jnp.sum(jnp.square(z), axis=-1)

    def row(own: tuple[Array, Array]) -> Array:
        embedding, place = own
        squares = lengths + lengths[place] - 2.0 * jnp.matmul(z, embedding, precision=PRECISE)
        return jnp.sum(jnp.where(places == place, 0.0, jnp.exp(-t * squares)))

    return jnp.log(jnp.sum(jax.lax.map(row, (z, places), batch_size=CHUNK)) / (len(z) * (len(z) - 1)))


def spread(z: Float[Array, "N D"]) -> Float[Array, ""]:
    """Return the standard deviation of a dimension of embeddings of length 1, the mean over all dimensions.

    Chen and He (arXiv 2011.10566, section 4.1): 0 if all are equal, ``1 / sqrt(D)`` if they point everywhere alike.
    """
    return jnp.mean(jnp.std(unit(z), axis=0))


def _triangle(z: Float[Array, "N D"]) -> Float[Array, "M D"]:
    """Return the triangle of a QR decomposition: singular values and right vectors of ``z`` in at most D rows."""
    return jnp.linalg.qr(z, mode="r")


SHORTEST = 1e-12  # a vector below this length has no direction; so PyTorch's `normalize` has it


PRECISE = jax.lax.Precision.HIGHEST


def unit(z: Float[Array, "*n D"]) -> Float[Array, "*n D"]:
    """Return each vector divided by its length; one without a direction becomes 0, and no gradient reaches it.

    One that is not finite stays so: a run that diverges must not look like one that has collapsed.
    """
    z = at_least_float32(z)
    squares = jnp.sum(jnp.square(z), axis=-1, keepdims=True)
    there = ~(squares <= SHORTEST**2)  # of NaN neither is true
    # Where both branches of a `where` are differentiated, the one not taken must be finite too.
    return jnp.where(there, z / jnp.sqrt(jnp.where(there, squares, 1.0)), 0.0)

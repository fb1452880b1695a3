"""Contrastive losses (SimCLR, MoCo), MoCo's queue and momentum encoder, and schedules of the temperature.

Embeddings are normalised here, in float32 at least. Temperatures, momentums and steps may be traced.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from ..config.hparams import POSITIVE, UNIT, hparam
from ..errors import UserError
from ..metrics.embeddings import PRECISE, unit
from ..models.base import is_statistic
from ..types import Params


def nt_xent(
    z_a: Float[Array, "N D"], z_b: Float[Array, "N D"], temperature: Any, *, chunk: int | None = None
) -> Float[Array, ""]:
    """Return the normalised, temperature-scaled cross-entropy of two views, in nats.

    Chen et al. (arXiv 2002.05709, eq. 1): each of the 2N embeddings has to find its other view among the 2N - 1 other
    embeddings by cosine similarity. This is the mean over all 2N; SimCLR's own code adds the means of the two views,
    which is twice as much. The loss is log(2N - 1) if all embeddings are equal, and 0 for a single sample, which has no
    negatives.

    ``chunk``: rows of the 2N x 2N similarities that exist at a time (``None``: all). The backward pass computes them
    again: memory grows with ``2N * chunk`` instead of ``(2N)**2``, and the products take a third more time.
    """
    z = jnp.concatenate([unit(z_a), unit(z_b)])
    places = jnp.arange(len(z))

    def row_loss(row: tuple[Array, Array]) -> Array:
        embedding, place = row
        logits = jnp.matmul(z, embedding, precision=PRECISE) / temperature
        # The positive is read from the logits, since a separate product would be rounded differently.
        positive = jnp.sum(jnp.where(places == (place + len(z_a)) % len(z), logits, 0.0))
        return jax.nn.logsumexp(logits, where=places != place) - positive

    if chunk is None:
        return jnp.mean(jax.vmap(row_loss)((z, places)))
    return jnp.mean(jax.lax.map(jax.checkpoint(row_loss, prevent_cse=False), (z, places), batch_size=chunk))


def similarities(z_a: Float[Array, "N D"], z_b: Float[Array, "N D"]) -> dict[str, Float[Array, ""]]:
    """Return the mean cosine similarity of positive and of negative pairs of :func:`nt_xent`, from -1 to 1.

    The sum over all pairs of different samples is the squared length of the sum, so no matrix is formed.
    """
    a, b = unit(z_a), unit(z_b)
    positive, n = jnp.mean(jnp.sum(a * b, axis=-1)), len(a)
    if n == 1:
        return {"pos_similarity": positive, "neg_similarity": jnp.zeros_like(positive)}
    both = jnp.concatenate([a, b])
    within = jnp.sum(jnp.square(both)) + 2 * n * positive
    negative = (jnp.sum(jnp.square(jnp.sum(both, axis=0))) - within) / (4 * n * (n - 1))
    return {"pos_similarity": positive, "neg_similarity": negative}


def queue_info_nce(
    q: Float[Array, "N D"], k: Float[Array, "N D"], queue: Float[Array, "D K"], temperature: Any
) -> Float[Array, ""]:
    """Return the mean cross-entropy of finding a query's key among it and the keys of a queue, in nats.

    He et al. (arXiv 1911.05722, eq. 1): of the K + 1 logits the positive one is the first. Keys (of the momentum
    network) and queue (a key a column) have no gradient. The loss is log(K + 1) if all embeddings are equal, and
    ``log(K + 1)`` minus the loss is a lower bound of the mutual information of the views (van den Oord et al., arXiv
    1807.03748, eq. 5, which also counts the positive).
    """
    queries, keys, others = unit(q), jax.lax.stop_gradient(unit(k)), jax.lax.stop_gradient(unit(queue.T))
    positive = jnp.sum(queries * keys, axis=-1, keepdims=True)
    negatives = jnp.matmul(queries, others.T, precision=PRECISE)
    logits = jnp.concatenate([positive, negatives], axis=-1) / temperature
    return jnp.mean(jax.nn.logsumexp(logits, axis=-1) - logits[:, 0])


def queue_similarities(
    q: Float[Array, "N D"], k: Float[Array, "N D"], queue: Float[Array, "D K"]
) -> dict[str, Float[Array, ""]]:
    """Return ``pos_similarity`` and ``neg_similarity`` of :func:`queue_info_nce`, as in :func:`similarities`."""
    queries = unit(q)
    negative = jnp.sum(jnp.mean(queries, axis=0) * jnp.mean(unit(queue.T), axis=0))
    return {"pos_similarity": jnp.mean(jnp.sum(queries * unit(k), axis=-1)), "neg_similarity": negative}


def init_queue(key: Array, dim: int, size: int) -> Float[Array, "dim size"]:
    """Return the first queue: random directions, uniformly distributed."""
    return unit(jax.random.normal(key, (size, dim))).T


def check_queue(size: int, batch_size: int) -> None:
    """Refuse a queue that a whole number of batches does not fill."""
    if size < 1 or size % batch_size:
        raise UserError(f"pretrain.queue_size is {size}; allowed: a multiple of batch_size ({batch_size})")


def enqueue(
    queue: Float[Array, "D K"], keys: Float[Array, "N D"], pointer: Int[Array, ""] | int
) -> tuple[Float[Array, "D K"], Int[Array, ""]]:
    """Return the queue with its oldest keys replaced by new ones (of length 1), and the next pointer.

    To be called after the loss: the keys of a batch are no negatives of the same batch. ``pointer``: the column of the
    oldest key, 0 at first. K must be a multiple of N.
    """
    check_queue(queue.shape[1], len(keys))
    new = jax.lax.stop_gradient(unit(keys)).T.astype(queue.dtype)
    place = jnp.asarray(pointer, jnp.int32)
    return jax.lax.dynamic_update_slice_in_dim(queue, new, place, axis=1), (place + len(keys)) % queue.shape[1]


def momentum_update(key_params: Params, params: Params, momentum: Any) -> Params:
    """Return the key network's parameters after an update (He et al., eq. 2), before its keys are computed.

    ``m * key + (1 - m) * query``. It keeps its own batch statistics, which are averages already.
    """
    # `optax.incremental_update` adds the terms in the other order, which a fused multiply-add rounds differently.
    return {
        path: leaf if is_statistic(path) else momentum * leaf + (1.0 - momentum) * params[path]
        for path, leaf in key_params.items()
    }


def cosine_temperature(step: Any, total_steps: Any, hot: Any, cold: Any, fraction: Any) -> Any:
    """Return the temperature of an update: from ``hot`` down to ``cold`` along half a cosine, then ``cold``.

    ``cold + (hot - cold) / 2 * (1 + cos(pi * min(t / (fraction * T), 1)))``. The similarities of an untrained network
    are noise, which a low temperature would amplify.
    """
    return cold + 0.5 * (hot - cold) * (1.0 + jnp.cos(jnp.pi * _progress(step, total_steps, fraction)))


def linear_temperature(step: Any, total_steps: Any, hot: Any, cold: Any, fraction: Any) -> Any:
    """Return the temperature of an update: linearly from ``hot`` to ``cold``; else as :func:`cosine_temperature`."""
    return cold + (hot - cold) * (1.0 - _progress(step, total_steps, fraction))


def _progress(step: Any, total_steps: Any, fraction: Any) -> Any:
    """Return the share of the decay that is done, 0 to 1."""
    length = fraction * total_steps
    return jnp.where(length > 0, jnp.minimum(step / jnp.where(length > 0, length, 1.0), 1.0), 1.0)


Shape = Enum("Shape", ["constant", "cosine", "linear"])  # of the decay from hot to cold


@dataclass(frozen=True)
class Temperature:
    """The divisor of similarities over a run: ``hot`` at first, ``cold`` after a ``fraction`` of the updates.

    ``shape=constant`` is ``cold`` throughout. The defaults fall from SimCLR's 0.5 (for CIFAR-10) to MoCo's 0.07.
    """

    shape: Shape = hparam(Shape.cosine)
    hot: float = hparam(0.5, POSITIVE, traced=True)
    cold: float = hparam(0.07, POSITIVE, traced=True)
    fraction: float = hparam(0.1, UNIT, traced=True)

    def at(self, step: Any, total_steps: Any) -> Any:
        """Return the temperature of update number ``step`` of ``total_steps``."""
        if self.shape is Shape.constant:
            return self.cold
        schedule = cosine_temperature if self.shape is Shape.cosine else linear_temperature
        return schedule(step, total_steps, self.hot, self.cold, self.fraction)

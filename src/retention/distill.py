"""``retention=distill``: on the new inputs, the source's head keeps saying what it said before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..config.hparams import NON_NEGATIVE, POSITIVE, hparam
from ..objectives.base import Network, Objective
from ..objectives.supervised import Classification
from .base import Kept, Retention, SourceTask, task_of


@dataclass(frozen=True)
class Distill(Retention):
    """Learning without forgetting (Li and Hoiem, arXiv 1606.09282, eq. 2 and 3): no row of the source is needed.

    ``strength * temperature**2 * KL(old || present)`` between the probabilities that the old network and the present
    one give the source's classes, both from outputs divided by ``temperature``; the mean over the batch. Their
    cross-entropy, which the paper has, differs by a constant; the factor keeps the gradients' size whatever the
    temperature (Hinton et al., arXiv 1503.02531, section 2). Of a regression, and of embeddings: the mean squared
    difference of the outputs, without a temperature. The old network is run without dropout, in every update.
    """

    rehearses: ClassVar[bool] = True
    wants: ClassVar[str] = "asks the source's head of whole inputs"

    strength: float = hparam(1.0, NON_NEGATIVE, traced=True)
    temperature: float = hparam(2.0, POSITIVE, traced=True)

    @classmethod
    def fits(cls, objective: Objective) -> bool:
        """Tell whether the network takes rows as they are."""
        return objective.raw_inputs

    def init_state(self, task: SourceTask) -> Kept:
        """Return the old network."""
        return {"params": dict(task.params), "task": task_of(task)}

    def loss(self, source: Network, x: Float[Array, "N ..."], kept: Kept, key: Array) -> Float[Array, ""]:
        """Return the weighted distance between what the source's head says of the batch and what it said."""
        task = kept["task"]
        old, new = jax.lax.stop_gradient(task.infer(kept["params"], x)), source.run(x)[0]
        if not isinstance(task.objective, Classification):
            return self.strength * jnp.mean(jnp.square(new - old))
        return self.strength * divergence(old, new, self.temperature)


def divergence(old: Float[Array, "N K"], new: Float[Array, "N K"], temperature: Any) -> Float[Array, ""]:
    """Return ``T**2 * KL(softmax(old / T) || softmax(new / T))`` in nats, the mean over rows."""
    before, now = (jax.nn.log_softmax(outputs / temperature) for outputs in (old, new))
    return jnp.square(temperature) * jnp.mean(jnp.sum(jnp.exp(before) * (before - now), axis=-1))

"""``retention=distill``: on the target's inputs, the source head's outputs are kept close to those before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from ..config.hparams import NON_NEGATIVE, POSITIVE, hparam
from ..objectives.base import NetworkFns, Objective
from ..objectives.supervised import Classification
from .base import Retention, RetentionState, SourceTask, source_model


@dataclass(frozen=True)
class Distill(Retention):
    """Learning without forgetting (Li and Hoiem, arXiv 1606.09282, eq. 2 and 3); needs no rows of the source.

    ``strength * temperature**2 * KL(old || new)`` between the probabilities of the source's classes by the old and by
    the new network on the batch. The paper's cross-entropy differs from it by a constant; the factor makes the scale of
    the gradients independent of the temperature (Hinton et al., arXiv 1503.02531, section 2). For regressions and
    embeddings: the mean squared difference of the outputs.
    """

    rehearses: ClassVar[bool] = True
    requirement: ClassVar[str] = "asks the source's head of whole inputs"

    strength: float = hparam(1.0, NON_NEGATIVE, traced=True)
    temperature: float = hparam(2.0, POSITIVE, traced=True)

    @classmethod
    def supports(cls, objective: Objective) -> bool:
        """Tell whether the network takes rows unchanged."""
        return objective.raw_inputs

    def init_state(self, task: SourceTask) -> RetentionState:
        """Return the old network."""
        return {"params": dict(task.params), "source": source_model(task)}

    def loss(self, source: NetworkFns, x: Float[Array, "N ..."], state: RetentionState, key: Array) -> Float[Array, ""]:
        """Return the weighted distance between the source head's old and new outputs for the batch."""
        task = state["source"]
        old, new = jax.lax.stop_gradient(task.infer(state["params"], x)), source.run(x)[0]
        if not isinstance(task.objective, Classification):
            return self.strength * jnp.mean(jnp.square(new - old))
        return self.strength * divergence(old, new, self.temperature)


def divergence(old: Float[Array, "N K"], new: Float[Array, "N K"], temperature: Any) -> Float[Array, ""]:
    """Return ``T**2 * KL(softmax(old / T) || softmax(new / T))`` in nats, the mean over rows."""
    log_p, log_q = (jax.nn.log_softmax(outputs / temperature) for outputs in (old, new))
    return jnp.square(temperature) * jnp.mean(jnp.sum(jnp.exp(log_p) * (log_p - log_q), axis=-1))

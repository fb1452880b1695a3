"""``retention=replay`` and ``distill``: training continues on stored source rows, or on the source head's outputs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..config.hparams import COUNT, NON_NEGATIVE, POSITIVE, RATIO, hparam
from ..notices import warn_once
from ..objectives.base import NetworkFns, Objective, StepContext
from ..objectives.supervised import Classification
from .base import Retention, RetentionState, SourceTask, source_model, source_rows

RESERVOIR_STREAM = 0x2E5E2
LEARNING_STREAM = 1  # of an update's key, for the objective


@dataclass(frozen=True)
class Replay(Retention):
    """Experience replay from a reservoir (Chaudhry et al., arXiv 1902.10486).

    A ``fraction`` of the source's rows is stored, or ``count`` of them if given, before any augmentation. Each update
    adds ``strength`` times the source's loss on ``batch_size`` of them (null: as many as the batch has rows), drawn
    with replacement; if no more are stored than that, on all of them.
    """

    needs_source: ClassVar[bool] = True
    rehearses: ClassVar[bool] = True
    requirement: ClassVar[str] = "learns rows again by themselves"

    fraction: float = hparam(0.1, RATIO)
    count: int | None = hparam(None, COUNT)
    strength: float = hparam(1.0, NON_NEGATIVE, traced=True)
    batch_size: int | None = hparam(None, COUNT)

    @classmethod
    def supports(cls, objective: Objective) -> bool:
        """Tell whether the loss of a batch needs no state of the training."""
        return objective.per_example_loss

    def init_state(self, task: SourceTask) -> RetentionState:
        """Return the stored rows."""
        x, y = source_rows(self, task)
        size = max(1, math.floor(self.fraction * len(x) + 0.5)) if self.count is None else self.count
        if size > len(x):
            warn_once(f"retention.count is {size} and the task to be kept has fewer rows: all of them are kept")
        chosen = reservoir(len(x), size, np.random.default_rng([task.seed, RESERVOIR_STREAM]))
        return {"x": jnp.asarray(x)[chosen], "y": jnp.asarray(y)[chosen], "source": source_model(task)}

    def update(self, state: RetentionState, task: SourceTask) -> RetentionState:
        """Return the stored rows of all tasks so far, as many of each."""
        new = self.init_state(task)
        return new | {name: jnp.concatenate([state[name], new[name]]) for name in ("x", "y")}

    def loss(self, source: NetworkFns, x: Float[Array, "N ..."], state: RetentionState, key: Array) -> Float[Array, ""]:
        """Return the weighted loss of the source task on random stored rows, with words masked and views drawn anew."""
        wanted, rows = self.batch_size or len(x), len(state["x"])
        old_x, old_y = state["x"], state["y"]
        if wanted < rows:
            drawn = jax.random.randint(key, (wanted,), 0, rows)
            old_x, old_y = old_x[drawn], old_y[drawn]
        context = StepContext(jax.random.fold_in(key, LEARNING_STREAM), 1.0, 1.0)
        task = state["source"]
        memory = task.objective.init_memory(context.key, source.params, task.outputs)
        return self.strength * task.objective.loss_and_aux(source, (old_x, old_y), context, memory)[0]


def reservoir(rows: int, size: int, rng: np.random.Generator) -> Int[np.ndarray, " kept"]:
    """Return which ``size`` of ``rows`` a reservoir holds after one pass: every subset is equally likely.

    Vitter (1985, "Random sampling with a reservoir", algorithm R).
    """
    stored = np.arange(min(rows, size))
    later = np.arange(len(stored), rows)
    places = rng.integers(0, later + 1)
    inside = places < size
    # Of several rows for one place the last one stays, as in a loop: NumPy assigns them in order.
    stored[places[inside]] = later[inside]
    return stored


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

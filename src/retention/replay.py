"""``retention=replay``: experience replay from a reservoir (Chaudhry et al., arXiv 1902.10486)."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from ..config.hparams import COUNT, NON_NEGATIVE, RATIO, hparam
from ..notices import warn_once
from ..objectives.base import NetworkFns, Objective, StepContext
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

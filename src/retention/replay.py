"""``retention=replay``: some rows of the source task are kept and learned again beside the new ones."""

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
from ..objectives.base import Network, Objective, StepContext
from .base import Kept, Retention, SourceTask, source_rows, task_of

RESERVOIR_STREAM = 0x2E5E2
LEARNING_STREAM = 1  # of an update's key: what the objective draws


@dataclass(frozen=True)
class Replay(Retention):
    """Experience replay from a reservoir (Chaudhry et al., arXiv 1902.10486).

    ``fraction`` of the source's rows are kept, or ``count`` of them where that is given; as they are, before any
    augmentation. Each update adds ``strength`` times the source's loss on ``batch`` of them (null: as many as the batch
    has new ones), drawn independently; where no more are kept than that, on all of them.
    """

    needs_source: ClassVar[bool] = True
    rehearses: ClassVar[bool] = True
    wants: ClassVar[str] = "learns rows again by themselves"

    fraction: float = hparam(0.1, RATIO)
    count: int | None = hparam(None, COUNT)
    strength: float = hparam(1.0, NON_NEGATIVE, traced=True)
    batch: int | None = hparam(None, COUNT)

    @classmethod
    def fits(cls, objective: Objective) -> bool:
        """Tell whether rows have a loss by themselves."""
        return objective.per_example_loss

    def init_state(self, task: SourceTask) -> Kept:
        """Return the rows."""
        x, y = source_rows(self, task)
        size = max(1, math.floor(self.fraction * len(x) + 0.5)) if self.count is None else self.count
        if size > len(x):
            warn_once(f"retention.count is {size} and the task to be kept has fewer rows: all of them are kept")
        chosen = reservoir(len(x), size, np.random.default_rng([task.seed, RESERVOIR_STREAM]))
        return {"x": jnp.asarray(x)[chosen], "y": jnp.asarray(y)[chosen], "task": task_of(task)}

    def update(self, kept: Kept, task: SourceTask) -> Kept:
        """Return the rows of all tasks so far, as many of each."""
        new = self.init_state(task)
        return new | {name: jnp.concatenate([kept[name], new[name]]) for name in ("x", "y")}

    def loss(self, source: Network, x: Float[Array, "N ..."], kept: Kept, key: Array) -> Float[Array, ""]:
        """Return the weighted loss of the source task on the rows of this update.

        That is the objective's own, as in the last update of the source task: words are missing anew, views drawn anew.
        """
        wanted, rows = self.batch or len(x), len(kept["x"])
        old_x, old_y = kept["x"], kept["y"]
        if wanted < rows:
            drawn = jax.random.randint(key, (wanted,), 0, rows)
            old_x, old_y = old_x[drawn], old_y[drawn]
        draw = StepContext(jax.random.fold_in(key, LEARNING_STREAM), 1.0, 1.0)
        task = kept["task"]
        memory = task.objective.init_memory(draw.key, source.params, task.outputs)
        return self.strength * task.objective.loss_and_aux(source, (old_x, old_y), draw, memory)[0]


def reservoir(rows: int, size: int, rng: np.random.Generator) -> Int[np.ndarray, " kept"]:
    """Return which ``size`` of ``rows`` a reservoir holds after one pass: every set of them is as likely.

    Vitter (1985, "Random sampling with a reservoir", algorithm R): row i (from 0) takes place i while there is room,
    and then place ``j``, drawn from 0 to i, if that is one of the reservoir's. All rows where there are no more.
    """
    kept = np.arange(min(rows, size))
    later = np.arange(len(kept), rows)
    places = rng.integers(0, later + 1)
    inside = places < size
    # Of several rows for one place the last one stays, as in a loop: NumPy assigns them in order.
    kept[places[inside]] = later[inside]
    return kept

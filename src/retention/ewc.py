"""``retention=ewc``: parameters are pulled to their old values, weighted by their importance for the source task."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from ..config.hparams import COUNT, NON_NEGATIVE, hparam
from ..objectives.base import Objective
from ..objectives.supervised import Classification, Regression
from ..types import Params
from .base import Retention, RetentionState, SourceModel, SourceTask, anchors, distance, source_model, source_rows
from .fisher import Estimator, Likelihood, fisher_diagonal

SAMPLES_STREAM, LABELS_STREAM = 0xE3C, 0x1ABE1  # streams of the seed: which rows, and the labels drawn for them


@dataclass(frozen=True)
class FisherSpec:
    """What the Fisher information depends on beside the parameters, the source task's rows and the seed."""

    task: SourceModel
    estimator: Estimator
    rows: int  # number of the source's rows: all, or a random subset
    chunk: int  # rows computed at a time, which decides the rounding of sums
    new_head: bool  # whether the source's head is left out

    def __str__(self) -> str:
        return f"Fisher information ({self.estimator.name}, {self.rows:,} rows)"


@dataclass(frozen=True)
class Ewc(Retention):
    """Elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796, eq. 3).

    ``strength / 2 * sum F (w - w0)**2`` with F the diagonal of the Fisher information at ``w0`` over the source's rows,
    without dropout or augmentation. ``fisher``: its estimator (``src/retention/fisher.py``; a regression has variance
    1). ``samples``: number of rows, chosen by the seed (null: all). ``chunk``: rows computed at a time; it only affects
    the result of ``batched``. A new head is left out: the penalty is on parameters of both tasks.
    """

    needs_source: ClassVar[bool] = True
    requirement: ClassVar[str] = "needs a likelihood of one label or number a row"

    strength: float = hparam(100.0, NON_NEGATIVE, traced=True)
    fisher: Estimator = hparam(Estimator.exact)
    samples: int | None = hparam(None, COUNT)
    chunk: int = hparam(256, COUNT)

    @classmethod
    def supports(cls, objective: Objective) -> bool:
        """Tell whether the loss of a row is a negative log-likelihood."""
        return type(objective) in (Classification, Regression)

    @property
    def penalises(self) -> bool:
        """Always."""
        return True

    def init_state(self, task: SourceTask) -> RetentionState:
        """Return the parameters that fine-tuning starts from, and the importance of each."""
        return {"anchor": anchors(task), "importance": self.importance(task)}

    def update(self, state: RetentionState, task: SourceTask) -> RetentionState:
        """Return one penalty whose gradients are those of the sum of all tasks' penalties.

        ``sum_t F_t (w - w_t)**2`` is ``F (w - a)**2`` plus a constant, with ``F`` the sum of the importances and ``a``
        the mean of the anchors weighted by them.
        """
        new = self.init_state(task)
        importance = {path: state["importance"][path] + F for path, F in new["importance"].items()}

        def mean(path: str) -> Array:
            weighted = state["importance"][path] * state["anchor"][path] + new["importance"][path] * new["anchor"][path]
            total = importance[path]
            return jnp.where(total > 0, weighted / jnp.where(total > 0, total, 1.0), new["anchor"][path])

        return {"anchor": {path: mean(path) for path in importance}, "importance": importance}

    def penalty(self, params: Params, state: RetentionState) -> Float[Array, ""]:
        """Return the weighted sum over trainable parameters that were pre-trained."""
        return self.strength * distance(params, state["anchor"], state["importance"])

    def importance(self, task: SourceTask) -> Params:
        """Return the diagonal of the Fisher information of the parameters with an anchor."""
        x, y = source_rows(self, task)
        if self.samples is not None and self.samples < len(x):
            chosen = np.random.default_rng([task.seed, SAMPLES_STREAM]).permutation(len(x))[: self.samples]
            x, y = np.asarray(x)[chosen], np.asarray(y)[chosen]
        anchor = anchors(task)
        rest = {path: leaf for path, leaf in task.params.items() if path not in anchor}
        key = jax.random.fold_in(jax.random.PRNGKey(task.seed), LABELS_STREAM)
        spec = FisherSpec(source_model(task), self.fisher, len(x), self.chunk, task.new_head)
        return task.cached(spec, lambda: _diagonal(spec, anchor, rest, x, y, key))


@partial(jax.jit, static_argnums=0)
def _diagonal(spec: FisherSpec, params: Params, rest: Params, x: Any, y: Any, key: Array) -> Params:
    """Return the diagonal for ``params``; compiled once for all runs of these shapes."""
    task = spec.task
    categorical = isinstance(task.objective, Classification)
    likelihood = Likelihood.categorical if categorical else Likelihood.gaussian

    def outputs(params: Params, row: Array) -> Array:
        out = task.infer({**params, **rest}, row[None])[0]
        return jax.nn.log_softmax(out) if categorical else out

    return fisher_diagonal(
        outputs, params, x, likelihood=likelihood, estimator=spec.estimator, key=key, targets=y, chunk=spec.chunk
    )

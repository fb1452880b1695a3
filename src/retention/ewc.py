"""``retention=ewc``: parameters are pulled back the harder, the more the source task depends on them."""

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
from .base import Kept, Retention, SourceTask, Task, anchors, distance, source_rows, task_of
from .fisher import Estimator, fisher_diagonal, gaussian_fisher_diagonal

SAMPLES_STREAM, LABELS_STREAM = 0xE3C, 0x1ABE1  # of the seed: which rows, and which labels are drawn for them


@dataclass(frozen=True)
class Information:
    """Which Fisher information it is: what decides it beside the parameters, the source task's rows and the seed."""

    task: Task
    estimator: Estimator
    rows: int  # how many of the source's rows it is of: all, or as many as the seed has chosen
    chunk: int  # rows at a time; sums are rounded in their order
    new_head: bool  # whether the source's head is left out

    def __str__(self) -> str:
        return f"Fisher information ({self.estimator.name}, {self.rows:,} rows)"


@dataclass(frozen=True)
class Ewc(Retention):
    """Elastic weight consolidation (Kirkpatrick et al., arXiv 1612.00796, eq. 3).

    ``strength / 2 * sum F (w - w0)**2`` with F the diagonal of the Fisher information at ``w0`` over the source's rows,
    without dropout or augmentation. ``fisher`` names its estimate (``src/retention/fisher.py``; of a regression: with
    variance 1), ``samples`` how many rows it takes, chosen by the seed (null: all), ``chunk`` how many at a time;
    ``batched`` depends on that, and it alone. A new head is left out: the penalty is of what both tasks share.
    """

    needs_source: ClassVar[bool] = True
    wants: ClassVar[str] = "needs a likelihood of one label or number a row"

    strength: float = hparam(100.0, NON_NEGATIVE, traced=True)
    fisher: Estimator = hparam(Estimator.exact)
    samples: int | None = hparam(None, COUNT)
    chunk: int = hparam(256, COUNT)

    @classmethod
    def fits(cls, objective: Objective) -> bool:
        """Tell whether the loss of a row is its likelihood."""
        return type(objective) in (Classification, Regression)

    @property
    def penalises(self) -> bool:
        """Always."""
        return True

    def init_state(self, task: SourceTask) -> Kept:
        """Return the parameters that fine-tuning starts from, and the importance of each."""
        return {"anchor": anchors(task), "importance": self.importance(task)}

    def update(self, kept: Kept, task: SourceTask) -> Kept:
        """Return one penalty that stands for those of all tasks: each has its own anchor and importance.

        ``sum_t F_t (w - w_t)**2`` is ``F (w - a)**2`` and a constant, with ``F`` the sum of the importances and ``a``
        the mean of the anchors weighted by them: the gradients are the same, and memory does not grow with the tasks.
        """
        new = self.init_state(task)
        importance = {path: kept["importance"][path] + F for path, F in new["importance"].items()}

        def mean(path: str) -> Array:
            weighted = kept["importance"][path] * kept["anchor"][path] + new["importance"][path] * new["anchor"][path]
            total = importance[path]
            return jnp.where(total > 0, weighted / jnp.where(total > 0, total, 1.0), new["anchor"][path])

        return {"anchor": {path: mean(path) for path in importance}, "importance": importance}

    def penalty(self, params: Params, kept: Kept) -> Float[Array, ""]:
        """Return the weighted sum over what moves and was pre-trained."""
        return self.strength * distance(params, kept["anchor"], kept["importance"])

    def importance(self, task: SourceTask) -> Params:
        """Return the diagonal of the Fisher information, of what is anchored only.

        Raises:
            UserError: there are no rows of the source task.
        """
        x, y = source_rows(self, task)
        if self.samples is not None and self.samples < len(x):
            chosen = np.random.default_rng([task.seed, SAMPLES_STREAM]).permutation(len(x))[: self.samples]
            x, y = np.asarray(x)[chosen], np.asarray(y)[chosen]
        anchor = anchors(task)
        rest = {path: leaf for path, leaf in task.params.items() if path not in anchor}
        draws = jax.random.fold_in(jax.random.PRNGKey(task.seed), LABELS_STREAM)
        which = Information(task_of(task), self.fisher, len(x), self.chunk, task.new_head)
        return task.cached(which, lambda: _diagonal(which, anchor, rest, x, y, draws))


@partial(jax.jit, static_argnums=0)
def _diagonal(which: Information, params: Params, rest: Params, x: Any, y: Any, key: Array) -> Params:
    """Return the diagonal for ``params``; compiled once for all runs of these shapes."""
    task = which.task

    def outputs(params: Params, row: Array) -> Array:
        out = task.infer({**params, **rest}, row[None])[0]
        return jax.nn.log_softmax(out) if isinstance(task.objective, Classification) else out

    diagonal = fisher_diagonal if isinstance(task.objective, Classification) else gaussian_fisher_diagonal
    return diagonal(outputs, params, x, estimator=which.estimator, key=key, targets=y, chunk=which.chunk)

"""Metrics of continual learning, computed from a matrix of accuracies.

``R[i][j]`` is the accuracy on task ``j`` after learning task ``i``, shape (T, T). Entries above the diagonal are used
by :func:`forward_transfer` only; unused entries may be NaN. Another shape, or an entry that is used and not finite, is
a ``ValueError``.
"""

from __future__ import annotations

import numpy as np
from jaxtyping import Float
from numpy.typing import ArrayLike


def average_accuracy(R: ArrayLike) -> float:
    """Return ``mean_j R[T-1][j]``: the final accuracy over all tasks (ACC in arXiv 1706.08840, eq. 2)."""
    return float(_needed(_square(R)[-1], "the last row").mean())


def learning_accuracy(R: ArrayLike) -> float:
    """Return ``mean_i R[i][i]``: the accuracy on each task just after learning it (arXiv 1810.11910, section 5)."""
    return float(_needed(np.diagonal(_square(R)), "the diagonal").mean())


def backward_transfer(R: ArrayLike) -> float:
    """Return ``mean_{i<T-1} R[T-1][i] - R[i][i]``, -1 to 1: the effect of later tasks on earlier ones.

    Lopez-Paz and Ranzato (arXiv 1706.08840, eq. 3). Negative values mean forgetting; 0 if there is one task only.
    """
    table = _square(R)
    changes = _needed(table[-1], "the last row") - _needed(np.diagonal(table), "the diagonal")
    return _mean(changes[:-1])


def forgetting(R: ArrayLike) -> float:
    """Return ``mean_{j<T-1} max_{j<=l<T-1} R[l][j] - R[T-1][j]``, -1 to 1: the drop of each task from its best.

    Chaudhry et al. (arXiv 1801.10112, eq. 3). The best is over the rows before the last, so a task that ended better
    than before counts as negative; some codes include the last row in the maximum, which hides that. 0 if there is one
    task only.
    """
    table = _square(R)
    _needed(table[np.tril_indices(len(table))], "the lower triangle")
    return _mean(np.array([table[j:-1, j].max() - table[-1, j] for j in range(len(table) - 1)]))


def forward_transfer(R: ArrayLike, baseline: ArrayLike) -> float:
    """Return ``mean_{j>=1} R[j-1][j] - baseline[j]``, -1 to 1: the effect of earlier tasks on one not yet learned.

    Lopez-Paz and Ranzato (arXiv 1706.08840, eq. 4). ``baseline``: accuracy of the initial model on each task, shape
    (T,); the first is not used. 0 if there is one task only.
    """
    table, chance = _square(R), np.asarray(baseline, np.float64)
    if chance.shape != table.shape[:1]:
        raise ValueError(f"baseline must be of shape ({len(table)},), one value a task, got {chance.shape}")
    ahead = _needed(np.diagonal(table, offset=1), "the diagonal above the main one")
    return _mean(ahead - _needed(chance[1:], "the baseline"))


def _square(R: ArrayLike) -> Float[np.ndarray, "T T"]:
    table = np.asarray(R, np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or not table.size:
        raise ValueError(f"R must be of shape (T, T), a row and a column for each task, got {table.shape}")
    return table


def _needed(values: np.ndarray, where: str) -> np.ndarray:
    if not np.isfinite(values).all():
        raise ValueError(f"{where} must be finite numbers, got {values[~np.isfinite(values)][0]}")
    return values


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if values.size else 0.0

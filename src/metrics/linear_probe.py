"""A linear classifier on fixed features: multinomial logistic regression with an L2 penalty, by scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
MAX_ITER = 300  # of L-BFGS
TOLERANCE = 1e-4  # largest entry of the gradient at which L-BFGS stops


def linear_probe(
    train: tuple[ArrayLike, ArrayLike],
    val: tuple[ArrayLike, ArrayLike],
    test: tuple[ArrayLike, ArrayLike],
    penalties: Sequence[float] = PENALTIES,
) -> dict[str, float]:
    """Fit a classifier for each penalty, keep the one with the best validation accuracy, and test that one.

    Among penalties of equal validation accuracy the largest is kept. Features are used unscaled, and the effect of a
    penalty depends on their scale. If the chosen penalty is at an end of the list, the list is too short. Each part is
    features (N, D) and labels (N,).

    Returns:
        ``penalty``, the chosen one, and ``val_accuracy`` and ``test_accuracy`` from 0 to 1.
    """
    if not penalties or not all(np.isfinite(penalty) and penalty > 0 for penalty in penalties):
        raise ValueError(f"penalties must be finite numbers > 0, at least one, got {tuple(penalties)}")
    best: dict[str, float] = {}
    for penalty in sorted(penalties, reverse=True):
        model = fit_probe(*train, penalty)
        found = accuracy(model, *val)
        if not best or found > best["val_accuracy"]:
            best = {"penalty": penalty, "val_accuracy": found, "test_accuracy": accuracy(model, *test)}
    return best


def fit_probe(x: Float[ArrayLike, "N D"], y: Int[ArrayLike, " N"], penalty: float) -> LogisticRegression | int:
    """Return the minimum of ``mean cross-entropy + penalty / 2 * |kernel|**2``; the bias is not penalised.

    If all labels are equal, that label is returned.
    """
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression  # takes a while to import

    labels = np.unique(y)
    if len(labels) == 1:
        return int(labels[0])
    # For two classes scikit-learn fits the difference w of two columns, which have the squared length w**2 / 2.
    strength = penalty * len(np.asarray(y)) / (2 if len(labels) == 2 else 1)
    with warnings.catch_warnings():
        # The last digits of an ill-conditioned optimum, such as that of pixels, take minutes and change no accuracy.
        warnings.simplefilter("ignore", ConvergenceWarning)
        model = LogisticRegression(C=1 / strength, tol=TOLERANCE, max_iter=MAX_ITER)
        return model.fit(np.asarray(x, np.float64), y)


def accuracy(model: LogisticRegression | int, x: ArrayLike, y: ArrayLike) -> float:
    """Return the share of labels that a classifier predicts."""
    predicted = model if isinstance(model, int) else model.predict(np.asarray(x, np.float64))
    return float(np.mean(predicted == np.asarray(y)))

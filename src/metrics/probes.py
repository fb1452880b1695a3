"""Classifiers that evaluate features: k nearest neighbours, and logistic regression by scikit-learn."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int
from numpy.typing import ArrayLike

from .embeddings import PRECISE, unit

if TYPE_CHECKING:
    from sklearn.linear_model import LogisticRegression

CHUNK = 256  # queries at a time: with a bank of 50,000 rows, 50 MB of similarities
PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
MAX_ITER = 300  # of L-BFGS
TOLERANCE = 1e-4  # largest entry of the gradient at which L-BFGS stops


@partial(jax.jit, static_argnames=("k", "classes"))
def knn_predict(
    bank: Float[Array, "N D"],
    labels: Int[Array, " N"],
    queries: Float[Array, "Q D"],
    k: int,
    temperature: Any,
    classes: int,
) -> Int[Array, " Q"]:
    """Return the label by a vote of the ``k`` nearest rows of a bank, by cosine similarity.

    Wu et al. (arXiv 1805.01978, section 3.4): each neighbour votes with weight ``exp(similarity / temperature)``. At a
    high temperature the majority decides, at a low one the nearest neighbour. Ties are broken by the first row of the
    bank and the lowest label. The paper has a ``k`` of 200, at most the bank's rows are used, and a temperature of
    0.07. Labels outside of 0 to ``classes - 1`` do not vote.

    Raises:
        ValueError: ``k`` or ``classes`` is below 1, or the bank has no rows.
    """
    if k < 1 or classes < 1 or not len(bank):
        raise ValueError(f"k, classes and the bank's rows must be at least 1, got {k}, {classes} and {len(bank)}")
    bank, k = unit(bank), min(k, len(bank))

    def vote(query: Array) -> Array:
        nearest, places = jax.lax.top_k(jnp.matmul(bank, query, precision=PRECISE), k)
        weights = jnp.exp((nearest - nearest[0]) / temperature)  # the nearest has weight 1, so nothing overflows
        # A masked sum, as scattered additions have no fixed order on a GPU.
        one_hot = labels[places][:, None] == jnp.arange(classes)[None, :]
        return jnp.argmax(jnp.sum(jnp.where(one_hot, weights[:, None], 0.0), axis=0))

    return jax.lax.map(vote, unit(queries), batch_size=CHUNK)


def linear_probe(
    train: tuple[ArrayLike, ArrayLike],
    val: tuple[ArrayLike, ArrayLike],
    test: tuple[ArrayLike, ArrayLike],
    penalties: Sequence[float] = PENALTIES,
) -> dict[str, float]:
    """Fit a classifier for each penalty, keep the one with the best validation accuracy, and test that one.

    Among equal penalties the largest is kept. Each part is features (N, D), used unscaled, and labels (N,). Returned
    are ``penalty``, the chosen one, and ``val_accuracy`` and ``test_accuracy`` from 0 to 1.

    Raises:
        ValueError: no penalty, or none above 0.
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

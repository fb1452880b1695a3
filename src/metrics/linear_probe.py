"""A linear classifier on features that are computed already, fitted to its optimum: what a frozen network is worth."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

PENALTIES = (1.0, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
ITERATIONS = 2000  # of L-BFGS at most
MOST_DIMENSIONS = 4096  # of features whose curvature is computed: some tens of gigaflops and 134 MB
TOLERANCE = 1e-6  # largest entry of the gradient at which it ends


class Probe(NamedTuple):
    """A fitted classifier."""

    kernel: Float[np.ndarray, "D K"]
    bias: Float[np.ndarray, " K"]
    converged: bool

    def logits(self, x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "N K"]:
        """Return the outputs for some features."""
        return x @ self.kernel + self.bias


def linear_probe(
    train_x: ArrayLike,
    train_y: ArrayLike,
    val_x: ArrayLike,
    val_y: ArrayLike,
    test_x: ArrayLike,
    test_y: ArrayLike,
    classes: int,
    penalties: Sequence[float] = PENALTIES,
    iterations: int = ITERATIONS,
) -> dict[str, float]:
    """Fit a classifier for each penalty, keep the one that is best on the validation rows, and test that one.

    Each is the optimum of a convex problem (:func:`fit_probe`), so neither a learning rate nor a seed plays a part. Of
    penalties that are equally accurate on the validation rows the largest is kept. Features are used as they are: what
    a penalty does depends on their scale. A penalty at the end of the list says that the list is too short.

    Args:
        train_x: features of the training rows, shape (N, D); ``val_x`` and ``test_x`` likewise.
        train_y: their labels, shape (N,), whole numbers from 0 to ``classes - 1``; ``val_y`` and ``test_y`` likewise.
        val_x: as above.
        val_y: as above.
        test_x: as above.
        test_y: as above.
        classes: how many there are.
        penalties: to choose from, all > 0.
        iterations: the most of each fit.

    Returns:
        ``penalty``, the one chosen; ``train_accuracy``, ``val_accuracy`` and ``test_accuracy``, shares from 0 to 1;
        ``val_loss`` and ``test_loss``, the mean cross-entropy in nats; ``converged``, 1 if its optimum was reached.

    Raises:
        ValueError: no rows, shapes that do not match, labels outside of the classes, or no penalty > 0.
    """
    train, val, test = (
        _checked(name, x, y, classes)
        for name, x, y in (("train", train_x, train_y), ("val", val_x, val_y), ("test", test_x, test_y))
    )
    if not penalties or not all(np.isfinite(penalty) and penalty > 0 for penalty in penalties):
        raise ValueError(f"penalties must be finite numbers > 0, at least one, got {tuple(penalties)}")
    fits: list[tuple[float, Probe, dict[str, float]]] = []
    gram = gram_of(train[0])
    for penalty in sorted(penalties, reverse=True):
        probe = fit_probe(*train, classes, penalty, fits[-1][1] if fits else None, iterations, gram)
        fits.append((penalty, probe, scores(probe, *val)))
    penalty, probe, of_val = max(fits, key=lambda fit: fit[2]["accuracy"])  # of equal ones the first
    of_train, of_test = scores(probe, *train), scores(probe, *test)
    return {
        "penalty": float(penalty),
        "train_accuracy": of_train["accuracy"],
        "val_accuracy": of_val["accuracy"],
        "test_accuracy": of_test["accuracy"],
        "val_loss": of_val["loss"],
        "test_loss": of_test["loss"],
        "converged": float(probe.converged),
    }


def fit_probe(
    x: Float[np.ndarray, "N D"],
    y: Int[np.ndarray, " N"],
    classes: int,
    penalty: float,
    start: Probe | None = None,
    iterations: int = ITERATIONS,
    gram: Float[np.ndarray, "D D"] | None = None,
) -> Probe:
    """Return the minimum of ``mean cross-entropy + penalty / 2 * |kernel|**2``, by L-BFGS over all rows in float64.

    The bias is not penalised. scikit-learn's ``LogisticRegression`` has the same minimum at ``C = 1 / (penalty * N)``.

    Args:
        x: features.
        y: labels.
        classes: how many there are.
        penalty: > 0.
        start: where to begin (default: 0): the minimum at a larger penalty is close by.
        iterations: the most that are made; ``converged`` says whether they were enough.
        gram: what :func:`gram_of` returns of the rows, where it is known already.
    """
    from scipy.linalg import solve_triangular
    from scipy.optimize import minimize  # takes a while to import

    rows, dim = x.shape
    happened = np.eye(classes)[y]
    gram = gram_of(x) if gram is None else gram
    root = None if gram is None else curvature_root(gram, rows, penalty)

    def in_kernel(flat: Float[np.ndarray, " P"]) -> Float[np.ndarray, "D K"]:
        own = flat[:-classes].reshape(dim, classes)
        return own if root is None else solve_triangular(root, own, lower=True, trans=1)

    def loss_and_gradient(flat: Float[np.ndarray, " P"]) -> tuple[float, Float[np.ndarray, " P"]]:
        kernel, bias = in_kernel(flat), flat[-classes:]
        log_p = _log_softmax(x @ kernel + bias)
        wrong = (np.exp(log_p) - happened) / rows
        loss = -np.sum(happened * log_p) / rows + penalty / 2 * np.sum(kernel**2)
        slope = x.T @ wrong + penalty * kernel
        slope = slope if root is None else solve_triangular(root, slope, lower=True)
        return float(loss), np.concatenate([slope.ravel(), wrong.sum(axis=0)])

    begin = np.zeros((dim + 1) * classes)
    if start is not None:
        begin = np.concatenate([(start.kernel if root is None else root.T @ start.kernel).ravel(), start.bias])
    options = {"maxiter": iterations, "maxfun": 2 * iterations, "gtol": TOLERANCE, "ftol": 0.0, "maxcor": 20}
    end = minimize(loss_and_gradient, begin, jac=True, method="L-BFGS-B", options=options)
    reached = bool(np.abs(end.jac).max() <= 10 * TOLERANCE)  # also where rounding ended it before the last digit
    return Probe(in_kernel(end.x), end.x[-classes:], reached)


def gram_of(x: Float[np.ndarray, "N D"]) -> Float[np.ndarray, "D D"] | None:
    """Return ``X^T X``, which the curvature is bounded with; ``None`` where it would not fit."""
    return x.T @ x if x.shape[1] <= MOST_DIMENSIONS else None


def curvature_root(gram: Float[np.ndarray, "D D"], rows: int, penalty: float) -> Float[np.ndarray, "D D"]:
    """Return the Cholesky root of a bound on the loss's curvature by the kernel.

    ``X^T X / 2N + penalty`` (Boehning 1992, Annals of the Institute of Statistical Mathematics 44). Steps are taken in
    ``root^T kernel``, in which features of very different variances, such as pixels, are equally steep. It is a bound:
    where the classifier is sure, the loss is flatter, and hundreds of steps remain.
    """
    return np.linalg.cholesky(gram / (2 * rows) + penalty * np.eye(len(gram)))


def scores(probe: Probe, x: Float[np.ndarray, "N D"], y: Int[np.ndarray, " N"]) -> dict[str, float]:
    """Return ``accuracy`` and ``loss`` (mean cross-entropy in nats) of some rows."""
    logits = probe.logits(x)
    losses = -_log_softmax(logits)[np.arange(len(y)), y]
    return {"accuracy": float(np.mean(logits.argmax(axis=1) == y)), "loss": float(losses.mean())}


def _log_softmax(logits: Float[np.ndarray, "N K"]) -> Float[np.ndarray, "N K"]:
    logits = logits - logits.max(axis=1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def _checked(
    name: str, x: ArrayLike, y: ArrayLike, classes: int
) -> tuple[Float[np.ndarray, "N D"], Int[np.ndarray, " N"]]:
    features, labels = np.asarray(x, np.float64), np.asarray(y)
    if features.ndim != 2 or labels.shape != features.shape[:1] or not features.size:
        raise ValueError(
            f"{name}_x must be of shape (N, D) and {name}_y of shape (N,), got {features.shape} and {labels.shape}"
        )
    if not np.isfinite(features).all():
        raise ValueError(f"{name}_x must be finite")
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= classes:
        raise ValueError(f"{name}_y must be whole numbers from 0 to {classes - 1}")
    return features, labels

"""How far a classifier's probabilities can be trusted: calibration error and proper scores."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float, Int
from numpy.typing import ArrayLike

BINS = 15  # of the confidence, as in Guo et al.


def expected_calibration_error(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> float:
    """Return the mean distance between confidence and accuracy, from 0 to 1.

    Guo et al. (arXiv 1706.04599, eq. 3): rows are put into ``bins`` intervals of equal width by their confidence, and
    ``|accuracy - mean confidence|`` of each is weighted with its share of the rows. Interval ``i`` (from 0) is
    ``(i / bins, (i + 1) / bins]``, as in the paper; a confidence of exactly 0 belongs to the first. Edges are rounded
    to the confidences' own precision, so that a float32 0.2 lies on the edge at 0.2.

    Args:
        confidence: probability of the predicted class, shape (N,), 0 to 1.
        correct: whether the prediction was right, shape (N,), booleans or 0 and 1.
        bins: number of intervals.

    Raises:
        ValueError: no rows, shapes that do not match, no bins, or values outside what is allowed.
    """
    found = _binned(confidence, correct, bins)
    return float(np.abs(found.hits - found.confidence).sum() / found.rows.sum())


def reliability_table(confidence: ArrayLike, correct: ArrayLike, bins: int = BINS) -> pd.DataFrame:
    """Return the bins of :func:`expected_calibration_error`, one a row: what a reliability diagram shows.

    Columns: ``lo`` and ``hi`` (bounds of the bin; ``lo`` itself lies in the bin below), ``count`` (rows in it), their
    mean ``confidence`` and their ``accuracy`` (both NaN in an empty bin). Arguments and errors are the same.
    """
    found = _binned(confidence, correct, bins)
    divisor = np.where(found.rows > 0, found.rows, np.nan)
    edges = np.arange(bins + 1) / bins
    return pd.DataFrame(
        {
            "lo": edges[:-1],
            "hi": edges[1:],
            "count": found.rows,
            "confidence": found.confidence / divisor,
            "accuracy": found.hits / divisor,
        }
    )


def negative_log_likelihood(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean of ``-log p(label)`` in nats; infinite where a label was given no probability at all.

    Args:
        probabilities: of each class, shape (N, K), rows that add up to 1.
        labels: the true classes, shape (N,), whole numbers from 0 to K - 1.

    Raises:
        ValueError: no rows, shapes that do not match, or values outside what is allowed.
    """
    p, y = _checked_classes(probabilities, labels)
    with np.errstate(divide="ignore"):
        return float(-np.log(p[np.arange(len(y)), y]).mean())


def brier_score(probabilities: ArrayLike, labels: ArrayLike) -> float:
    """Return the mean squared distance between probabilities and what happened, from 0 to 2.

    Brier (1950, "Verification of forecasts expressed in terms of probability"): the sum over all classes of
    ``(p - [class is the label])**2``, then the mean over rows. With two classes this is twice the score of the positive
    class alone, which scikit-learn's ``brier_score_loss`` returns. Arguments and errors as in
    :func:`negative_log_likelihood`.
    """
    p, y = _checked_classes(probabilities, labels)
    happened = np.arange(p.shape[1]) == y[:, None]
    return float(np.square(p - happened).sum(axis=1).mean())


class _Bins(NamedTuple):
    """Totals of each bin, shape (bins,)."""

    rows: Int[np.ndarray, " bins"]
    confidence: Float[np.ndarray, " bins"]
    hits: Float[np.ndarray, " bins"]


def _binned(confidence: ArrayLike, correct: ArrayLike, bins: int) -> _Bins:
    c, hit = np.asarray(confidence), np.asarray(correct)
    if c.dtype not in (np.float32, np.float64):
        c = c.astype(np.float64)
    if bins < 1:
        raise ValueError(f"bins must be at least 1, got {bins}")
    if c.ndim != 1 or c.shape != hit.shape:
        raise ValueError(f"confidence and correct must be of one shape (N,), got {c.shape} and {hit.shape}")
    if not len(c):
        raise ValueError("confidence is empty: there is nothing to calibrate")
    _check_unit("confidence", c)
    if not np.isin(hit, (0, 1)).all():
        raise ValueError("correct must be booleans, or 0 and 1")
    inner = (np.arange(1, bins) / bins).astype(c.dtype)
    place = np.searchsorted(inner, c, side="left")  # how many inner edges lie below: 0 for the first bin
    return _Bins(
        np.bincount(place, minlength=bins),
        np.bincount(place, weights=c, minlength=bins),
        np.bincount(place, weights=hit.astype(np.float64), minlength=bins),
    )


def _checked_classes(
    probabilities: ArrayLike, labels: ArrayLike
) -> tuple[Float[np.ndarray, "N K"], Int[np.ndarray, " N"]]:
    p, y = np.asarray(probabilities).astype(np.float64), np.asarray(labels)
    if p.ndim != 2 or y.shape != p.shape[:1]:
        raise ValueError(f"probabilities must be of shape (N, K) and labels (N,), got {p.shape} and {y.shape}")
    if not p.size:
        raise ValueError(f"probabilities are empty, of shape {p.shape}")
    _check_unit("probabilities", p)
    if np.abs(p.sum(axis=1) - 1).max() > 1e-2:  # the sum of bfloat16's roundings stays below
        raise ValueError("the probabilities of a row must add up to 1")
    if not np.issubdtype(y.dtype, np.integer) or y.min() < 0 or y.max() >= p.shape[1]:
        raise ValueError(f"labels must be whole numbers from 0 to {p.shape[1] - 1}")
    return p, y


def _check_unit(name: str, values: np.ndarray) -> None:
    wrong = values[~((values >= 0) & (values <= 1))]  # NaN is neither
    if wrong.size:
        raise ValueError(f"{name} must lie between 0 and 1, got {wrong[0]}")

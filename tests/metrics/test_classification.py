"""The calibration error inside a compiled program against the definition, row by row in float64."""

import itertools
import math

import jax.numpy as jnp
import numpy as np
import pytest

from src.metrics.classification import calibration_error


def expected_calibration_error(confidence, correct, bins: int = 15) -> float:
    """The definition of Guo et al. (arXiv 1706.04599, eq. 3), bin by bin: bin i is (i / bins, (i + 1) / bins].

    Edges are rounded to the precision of the confidences; a confidence of 0 belongs to the first bin.
    """
    confidence, correct = np.asarray(confidence), np.asarray(correct, float)
    edges = (np.arange(bins + 1) / bins).astype(confidence.dtype)
    total = 0.0
    for low, high in itertools.pairwise(edges):
        inside = (confidence > low) & (confidence <= high) | ((confidence == 0) & (low == 0))
        total += abs(correct[inside].sum() - confidence[inside].astype(float).sum())
    return total / len(confidence)


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "error"),
    [
        # Of 4 bins, (0, .25] is empty; (.25, .5] holds .3 .5, one right; (.5, .75] holds .6, wrong; the last .9 1.
        ([0.3, 0.5, 0.6, 0.9, 1.0], [1, 0, 0, 1, 1], 4, 0.18),  # 2/5 |.5 - .4| + 1/5 |0 - .6| + 2/5 |1 - .95|
        ([0.5, 0.9], [1, 0], 2, 0.7),  # .5 lies in the lower bin
        ([1.0, 0.6], [0, 1], 2, 0.3),  # 1 lies in the last bin
        ([0.0], [1], 15, 1.0),
        ([1.0, 1.0], [1, 1], 15, 0.0),
        ([1.0, 1.0], [0, 0], 15, 1.0),
    ],
)
def test_by_hand(confidence, correct, bins, error):
    found = calibration_error(jnp.asarray(confidence), jnp.asarray(correct, bool), bins)
    assert float(found) == pytest.approx(error, abs=1e-6)
    assert expected_calibration_error(confidence, correct, bins) == pytest.approx(error, abs=1e-12)


def test_a_calibrated_classifier_has_little_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=200_000)
    correct = jnp.asarray(rng.uniform(size=confidence.size) < confidence)
    assert float(calibration_error(jnp.asarray(confidence), correct)) < 0.01
    # The mean of x is 1 / 2, that of x^2 is 1 / 3.
    assert float(calibration_error(jnp.asarray(confidence**2), correct)) == pytest.approx(1 / 2 - 1 / 3, abs=0.01)


def test_only_chosen_predictions_count():
    confidence, hits = jnp.array([0.9, 0.2, 0.7]), jnp.array([True, True, False])
    chosen = jnp.array([True, False, True])
    found = calibration_error(confidence, hits, 10, chosen)
    assert float(found) == pytest.approx((abs(1 - 0.9) + abs(0 - 0.7)) / 2, abs=1e-6)
    assert math.isfinite(float(calibration_error(confidence, hits, 10, jnp.zeros(3, bool))))

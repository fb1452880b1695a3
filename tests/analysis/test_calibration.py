"""Calibration against values worked out by hand and scikit-learn's scores."""

import math
import subprocess
import sys

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, log_loss

from src.analysis.calibration import brier_score, expected_calibration_error, negative_log_likelihood, reliability_table


def test_by_hand():
    """Of 4 bins: (0, .25] is empty; (.25, .5] holds .3 .5, one right; (.5, .75] holds .6, wrong; the last .9 1., right.

    2/5 |.5 - .4| + 1/5 |0 - .6| + 2/5 |1 - .95| = .04 + .12 + .02.
    """
    confidence, correct = [0.3, 0.5, 0.6, 0.9, 1.0], [True, False, False, True, True]
    assert expected_calibration_error(confidence, correct, 4) == pytest.approx(0.18)
    table = reliability_table(confidence, correct, 4)
    assert list(table.columns) == ["lo", "hi", "count", "confidence", "accuracy"]
    assert table["count"].tolist() == [0, 2, 1, 2]
    assert table["lo"].tolist() == [0, 0.25, 0.5, 0.75]
    assert table["hi"].tolist() == [0.25, 0.5, 0.75, 1]
    np.testing.assert_allclose(table["confidence"], [math.nan, 0.4, 0.6, 0.95])
    np.testing.assert_allclose(table["accuracy"], [math.nan, 0.5, 0.0, 1.0])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("bins", [1, 2, 10, 15, 20])
def test_an_edge_belongs_to_the_bin_below_it(dtype, bins):
    edges = (np.arange(bins + 1) / bins).astype(dtype)
    found = reliability_table(edges, np.ones(bins + 1), bins)["count"]
    assert found.tolist() == [2] + [1] * (bins - 1)  # 0 and the first edge, then one each: 1 is in the last
    above = np.nextafter(edges[:-1], dtype(2))
    assert reliability_table(above, np.ones(bins), bins)["count"].tolist() == [1] * bins


def test_where_conventions_differ():
    """Confidences on an edge and at 1: with bins closed below, .5 would share a bin with .9, and 1 lie in none."""
    assert expected_calibration_error([0.5, 0.9], [1, 0], 2) == pytest.approx((0.5 + 0.9) / 2)
    assert expected_calibration_error([1.0, 0.6], [0, 1], 2) == pytest.approx(abs(1.6 - 1) / 2)
    assert expected_calibration_error([0.0], [1], 15) == 1.0


def test_perfect_and_worst():
    assert expected_calibration_error([1.0, 1.0], [1, 1]) == 0.0
    assert expected_calibration_error([1.0, 1.0], [0, 0]) == 1.0


def test_a_calibrated_classifier_has_little_error():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(size=200_000)
    correct = rng.uniform(size=confidence.size) < confidence
    assert expected_calibration_error(confidence, correct) < 0.01
    assert expected_calibration_error(confidence**2, correct) == pytest.approx(1 / 2 - 1 / 3, abs=0.01)


def test_the_table_gives_the_error():
    rng = np.random.default_rng(1)
    confidence, correct = rng.uniform(0.2, 1, 500), rng.uniform(size=500) < 0.6
    table = reliability_table(confidence, correct, 15).dropna()
    error = ((table.accuracy - table.confidence).abs() * table["count"]).sum() / 500
    assert expected_calibration_error(confidence, correct) == pytest.approx(error)


def test_scores_by_hand():
    probabilities, labels = [[0.5, 0.25, 0.25], [0.0, 1.0, 0.0]], [1, 1]
    assert negative_log_likelihood(probabilities, labels) == pytest.approx(math.log(4) / 2)
    assert brier_score(probabilities, labels) == pytest.approx((0.25 + 0.5625 + 0.0625) / 2)
    assert brier_score([[1.0, 0.0]], [1]) == 2.0
    assert negative_log_likelihood([[1.0, 0.0]], [1]) == math.inf


def test_scores_against_scikit_learn():
    rng = np.random.default_rng(2)
    p, y = rng.dirichlet([1, 2, 3, 4], 300), rng.integers(0, 4, 300)
    assert negative_log_likelihood(p, y) == pytest.approx(log_loss(y, p, labels=range(4)))
    assert brier_score(p, y) == pytest.approx(brier_score_loss(y, p, labels=range(4), scale_by_half=False))


def test_two_classes_count_twice():
    """scikit-learn's binary score is of the positive class alone."""
    rng = np.random.default_rng(3)
    positive, y = rng.uniform(size=200), rng.integers(0, 2, 200)
    both = np.stack([1 - positive, positive], axis=1)
    assert brier_score(both, y) == pytest.approx(2 * brier_score_loss(y, positive))


@pytest.mark.parametrize(
    ("confidence", "correct", "bins", "message"),
    [
        ([], [], 15, "empty"),
        ([0.5], [1, 0], 15, r"one shape .*\(1,\) and \(2,\)"),
        ([[0.5]], [[1]], 15, "one shape"),
        ([0.5, 1.5], [1, 0], 15, "between 0 and 1, got 1.5"),
        ([-0.1], [1], 15, "between 0 and 1, got -0.1"),
        ([math.nan], [1], 15, "between 0 and 1, got nan"),
        ([0.5], [2], 15, "booleans, or 0 and 1"),
        ([0.5], [1], 0, "bins must be at least 1, got 0"),
    ],
)
@pytest.mark.parametrize("function", [expected_calibration_error, reliability_table])
def test_confidences_that_are_refused(function, confidence, correct, bins, message):
    with pytest.raises(ValueError, match=message):
        function(confidence, correct, bins)


@pytest.mark.parametrize(
    ("probabilities", "labels", "message"),
    [
        (np.empty((0, 3)), np.empty(0, int), "empty"),
        ([0.5, 0.5], [0, 1], r"\(N, K\)"),
        ([[0.5, 0.5]], [0, 1], r"\(1, 2\) and \(2,\)"),
        ([[0.5, 1.5]], [0], "between 0 and 1, got 1.5"),
        ([[0.5, math.nan]], [0], "between 0 and 1, got nan"),
        ([[0.5, 0.9]], [0], "add up to 1"),
        ([[0.5, 0.5]], [2], "whole numbers from 0 to 1"),
        ([[0.5, 0.5]], [-1], "whole numbers from 0 to 1"),
        ([[0.5, 0.5]], [0.0], "whole numbers from 0 to 1"),
    ],
)
@pytest.mark.parametrize("function", [negative_log_likelihood, brier_score])
def test_probabilities_that_are_refused(function, probabilities, labels, message):
    with pytest.raises(ValueError, match=message):
        function(probabilities, labels)


def test_no_jax_is_imported():
    code = "import sys, src.analysis.calibration; print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"

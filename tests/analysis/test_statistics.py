import math

import numpy as np
import pytest
from scipy import stats

from src.analysis.statistics import ConfidenceInterval, mean_interval, paired_difference

# Published two-sided 95 % points of Student's t (any textbook's table), by degrees of freedom.
PUBLISHED_T = {1: 12.706, 2: 4.303, 4: 2.776, 9: 2.262, 29: 2.045}


@pytest.mark.parametrize("df", PUBLISHED_T)
def test_against_published_t_values(df):
    values = np.random.default_rng(df).normal(size=df + 1)
    interval = mean_interval(values)
    standard_error = np.std(values, ddof=1) / math.sqrt(df + 1)
    assert interval.half / standard_error == pytest.approx(PUBLISHED_T[df], abs=6e-4)
    assert interval.mean == pytest.approx(values.mean())


def test_two_values_have_a_closed_form():
    # t(1) is the Cauchy distribution, whose 97.5 % point is tan(0.475 π); the standard error is |a - b| / 2.
    interval = mean_interval([1.0, 3.0])
    assert interval == pytest.approx((2, 2 - math.tan(0.475 * math.pi), 2 + math.tan(0.475 * math.pi), 2))


def test_the_interval_covers_as_often_as_it_says():
    samples = np.random.default_rng(0).normal(5.0, 2.0, size=(4000, 3))
    hits = sum(interval.low < 5 < interval.high for interval in map(mean_interval, samples))
    assert abs(hits / 4000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)


def test_one_value_has_a_mean_and_no_interval():
    interval = mean_interval([2.5])
    assert interval.mean == 2.5
    assert interval.n == 1
    assert math.isnan(interval.low)
    assert math.isnan(interval.high)
    assert not interval.excludes_zero


@pytest.mark.parametrize("values", [[], [1.0, math.nan], [1.0, math.inf]])
def test_no_interval_without_finite_values(values):
    interval = mean_interval(values)
    assert not math.isfinite(interval.mean)
    assert math.isnan(interval.low)


def test_pairs_are_the_common_keys_and_match_scipy():
    a = {0: 1.0, 1: 2.5, 2: 2.9, 7: 100.0}
    b = {2: 2.0, 1: 2.0, 0: 0.8, 9: -100.0}
    expected = stats.ttest_rel([1.0, 2.5, 2.9], [0.8, 2.0, 2.0]).confidence_interval(0.95)
    interval = paired_difference(a, b)
    assert interval.n == 3
    assert (interval.low, interval.high) == pytest.approx(tuple(expected))
    assert paired_difference(b, a).mean == pytest.approx(-interval.mean)


def test_no_common_key():
    assert paired_difference({0: 1.0}, {1: 1.0}).n == 0


def test_excludes_zero():
    assert ConfidenceInterval(1, 0.5, 1.5, 3).excludes_zero
    assert ConfidenceInterval(-1, -1.5, -0.5, 3).excludes_zero
    assert not ConfidenceInterval(0.1, -0.5, 0.7, 3).excludes_zero


@pytest.mark.parametrize("rounding", [0.0, 1e-8])
def test_differences_that_only_rounding_tells_apart_are_identical(rounding):
    """Float32 metrics of two arms that differ by one row of 224 at every seed."""
    values = np.array([217, 219, 220]) / 224
    a = dict(enumerate(values + 1 / 224 + rounding * np.array([1, -1, 1])))
    found = paired_difference(a, dict(enumerate(values)))
    assert found.identical
    assert not found.excludes_zero
    assert found.mean == pytest.approx(1 / 224, abs=1e-7)
    assert not mean_interval([1.0]).identical
    assert not paired_difference({0: 1.0, 1: 1.001}, {0: 0.0, 1: 0.0}).identical

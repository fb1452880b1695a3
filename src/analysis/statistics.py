"""Confidence intervals for few seeds."""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from jaxtyping import Float, Int
from scipy import stats

UPPER = (1 + 0.95) / 2  # the upper end of a two-sided 95 % interval
RESAMPLES = 4000
Key = TypeVar("Key", bound=Hashable)  # usually a seed
SAME = 4 * float(np.finfo(np.float32).eps)  # relative: differences of float32 metrics that only rounding tells apart


class ConfidenceInterval(NamedTuple):
    """A mean of ``n`` values with the bounds of its confidence interval, all in the unit of the values."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the width of the interval: the number after "±"."""
        return (self.high - self.low) / 2

    @property
    def identical(self) -> bool:
        """Whether several values are all the same, so that their variance says nothing about further values."""
        return self.n > 1 and self.low == self.high

    @property
    def excludes_zero(self) -> bool:
        """Whether 0 lies outside the interval; False without an interval and for identical values."""
        return not self.identical and (self.low > 0 or self.high < 0)


def mean_interval(values: Iterable[float]) -> ConfidenceInterval:
    """Return the mean and its two-sided 95 % Student-t interval, mean ± t(n-1) · s / √n.

    The interval assumes independent draws from a normal distribution (Student 1908, "The probable error of a mean").
    The bounds are NaN for a single value and where a value is not finite. The mean of no values is NaN.
    """
    sample = np.asarray(list(values), dtype=float)
    n = sample.size
    mean = float(sample.mean()) if n else math.nan
    if n < 2 or not np.isfinite(sample).all():
        return ConfidenceInterval(mean, math.nan, math.nan, n)
    half = float(stats.t.ppf(UPPER, df=n - 1) * sample.std(ddof=1) / math.sqrt(n))
    return ConfidenceInterval(mean, mean - half, mean + half, n)


def paired_difference(a: Mapping[Key, float], b: Mapping[Key, float]) -> ConfidenceInterval:
    """Return the interval of the mean of ``a[key] - b[key]`` over the keys (seeds) that both have.

    Pairing removes the effect of a seed on both sides. Differences that agree to the rounding of float32 metrics count
    as identical: the interval then has no width, and ``excludes_zero`` is False.
    """
    keys = [key for key in a if key in b]
    differences = [a[key] - b[key] for key in keys]
    found = mean_interval(differences)
    if found.n > 1 and math.isfinite(found.half):
        scale = max(max(abs(a[key]), abs(b[key])) for key in keys)
        if max(differences) - min(differences) <= SAME * scale:
            return ConfidenceInterval(found.mean, found.mean, found.mean, found.n)
    return found


def crossing(
    x: Sequence[float], y: Sequence[float] | Float[np.ndarray, " points"], last: bool = False, log: bool = True
) -> float:
    """Return where ``y`` rises from below 0 to 0 or above, interpolated linearly in log ``x`` (or in ``x``).

    ``x`` ascends and ``y`` is finite. The first crossing counts; with ``last``, the one after which ``y`` stays at or
    above 0. The result is ``-inf`` if ``y`` starts (with ``last``: stays) at or above 0, and ``inf`` if it never
    reaches 0 (with ``last``: ends below 0).
    """
    below = np.asarray(y) < 0
    if below[-1] if last else below.all():
        return math.inf
    after = int(np.flatnonzero(below)[-1]) + 1 if last and below.any() else int(np.flatnonzero(~below)[0])
    if after == 0:
        return -math.inf
    share = -y[after - 1] / (y[after] - y[after - 1])
    low, high = x[after - 1], x[after]
    return float(low * (high / low) ** share if log else low + share * (high - low))


def bootstrap(statistic: Callable[[Int[np.ndarray, " n"]], float], n: int) -> tuple[float, float]:
    """Return the expanded percentile bootstrap interval (95 %) of a statistic of ``n`` seeds.

    Plain percentiles are too narrow for few seeds. Expanded ones are taken at ``Phi(-sqrt(n / (n - 1)) t(n-1))``, which
    gives the Student-t interval of a mean where the resamples are normal (Hesterberg 2015, "What teachers should know
    about the bootstrap", The American Statistician 69, p. 371). The resamples come from a fixed random stream.
    ``statistic`` takes the ``n`` indices of a resample, drawn with repetition; its values may be infinite. The bounds
    are NaN for a single seed.
    """
    if n < 2:
        return math.nan, math.nan
    rng = np.random.default_rng(0)
    values = np.sort([statistic(drawn) for drawn in rng.integers(0, n, (RESAMPLES, n))])
    share = stats.norm.cdf(-math.sqrt(n / (n - 1)) * stats.t.ppf(UPPER, df=n - 1))
    tail = int(share * RESAMPLES)
    return float(values[tail]), float(values[RESAMPLES - 1 - tail])

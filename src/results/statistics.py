"""Intervals for means over few seeds."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping
from typing import NamedTuple, TypeVar

import numpy as np
from scipy import stats

Key = TypeVar("Key", bound=Hashable)  # a seed, as a rule


class Interval(NamedTuple):
    """A mean of ``n`` values with the bounds of its confidence interval, all in the values' own unit."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def half(self) -> float:
        """Half the interval's width: the number behind "±"."""
        return (self.high - self.low) / 2

    @property
    def excludes_zero(self) -> bool:
        """Tell whether 0 lies outside; False where there is no interval."""
        return self.low > 0 or self.high < 0


def mean_interval(values: Iterable[float], level: float = 0.95) -> Interval:
    """Return the mean and its two-sided Student-t interval, mean ± t(n-1) · s / √n.

    One value has a mean but no interval, and values that are not all finite have none either: their bounds
    are NaN. No values: the mean is NaN too. The t interval takes the values as independent draws from a
    normal distribution (Student 1908, "The probable error of a mean").

    Raises:
        ValueError: ``level`` is not between 0 and 1.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    sample = np.asarray(list(values), dtype=float)
    n = sample.size
    mean = float(sample.mean()) if n else math.nan
    if n < 2 or not np.isfinite(sample).all():
        return Interval(mean, math.nan, math.nan, n)
    half = float(stats.t.ppf((1 + level) / 2, df=n - 1) * sample.std(ddof=1) / math.sqrt(n))
    return Interval(mean, mean - half, mean + half, n)


def paired_difference(a: Mapping[Key, float], b: Mapping[Key, float], level: float = 0.95) -> Interval:
    """Return the interval of the mean of ``a[key] - b[key]`` over the keys (seeds) that both have.

    Pairing removes what a seed does to both alike, such as an easy split, so that fewer seeds suffice.
    """
    return mean_interval([a[key] - b[key] for key in a if key in b], level)

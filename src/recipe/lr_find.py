"""The learning-rate range test: one short run in which the rate grows from far too low to far too high.

Smith (arXiv 1506.01186, section 3.3), with the smoothing and the suggestions that fastai made common. What it trains is
thrown away: parameters and optimizer of the caller are not touched.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Float

from ..data.base import Transfer
from ..errors import UserError
from ..optim.schedules import Schedule
from ..training.calls import execute
from ..training.feature_cache import cache_features
from ..training.loop import PhaseData, PhaseRun, PhaseRunner, RunProgress
from ..training.vectorize import RunAxis
from ..types import Params, ignore
from .finetune import with_target_head
from .resolve import resolve
from .spec import Recipe

EXPLODED = 4.0  # times the lowest smoothed loss: from there on the curve says nothing any more
MEMORY = 0.9  # of the smoothed loss, an update; fastai's 0.98 lags by 50 updates of 100, and suggests rates too high


@dataclass(frozen=True)
class Exponential(Schedule):
    """From ``low`` to ``high`` by the same factor each update."""

    low: float = 1e-7
    high: float = 10.0

    def shape(self, step: Any, total_steps: Any) -> Any:
        """Return the rate itself: ``low * (high / low) ** (step / (total_steps - 1))``."""
        return self.low * (self.high / self.low) ** (step / (total_steps - 1))


class RangeTest(NamedTuple):
    """What the test measured, up to where the loss exploded."""

    rates: Float[np.ndarray, " K"]
    losses: Float[np.ndarray, " K"]  # of each batch, before its update
    smoothed: Float[np.ndarray, " K"]


def range_test(
    recipe: Recipe, data: Transfer, start: Params, *, low: float = 1e-7, high: float = 10.0, steps: int = 100
) -> RangeTest:
    """Train with growing rates in the first phase of a recipe's fine-tuning.

    Args:
        recipe: what is to be fine-tuned; its own rate, schedule and number of updates are left aside.
        data: the target task is used.
        start: pre-trained parameters.
        low: the first rate.
        high: the last rate.
        steps: updates.

    Raises:
        UserError: rates in the wrong order, too few updates, or a loss that is not finite from the start.
    """
    if not 0 < low < high:
        raise UserError(f"the rates go from {low:g} to {high:g}; allowed: 0 < low < high")
    if steps < 10:
        raise UserError(f"the test has {steps} updates; allowed: at least 10")
    run = resolve(replace(recipe, lr_fine=1.0, schedule=Exponential(low, high), log_every=steps), data)
    stage = replace(run.phases[0], steps=steps)
    params = execute(with_target_head(run, start))
    (upper,), inputs = cache_features([stage], [params], {"train": data.target["train"]})
    phase = PhaseRun(upper.stage, upper.params, RunProgress(ignore))
    losses = PhaseRunner([phase], PhaseData(inputs.splits["train"]), RunAxis.none).advance(0, steps).loss
    return cut_off(low * (high / low) ** (np.arange(steps) / (steps - 1)), np.asarray(losses))


def cut_off(rates: Float[np.ndarray, " N"], losses: Float[np.ndarray, " N"]) -> RangeTest:
    """Smooth the losses, and leave out what follows the first explosion."""
    mean, smoothed = 0.0, []
    for count, loss in enumerate(losses.astype(np.float64), 1):
        mean = MEMORY * mean + (1 - MEMORY) * loss
        smoothed.append(mean / (1 - MEMORY**count))  # without the start from 0
        if not np.isfinite(loss) or smoothed[-1] > EXPLODED * min(smoothed):
            smoothed.pop()
            break
    kept = len(smoothed)
    if kept < 10:
        raise UserError(f"the loss exploded after {kept} updates: begin with a lower rate")
    return RangeTest(rates[:kept], losses[:kept], np.array(smoothed))


def suggestions(test: RangeTest) -> dict[str, float]:
    """Return rates worth trying: ``valley``, ``steepest`` and ``minimum / 10``.

    ``valley``: two thirds down the longest decreasing subsequence of the smoothed loss; ``steepest``: where it falls
    fastest per factor of the rate; ``minimum / 10``: a tenth of the rate with the lowest smoothed loss.
    """
    falling = longest_decrease(test.smoothed)
    slope = np.gradient(test.smoothed, np.log(test.rates))
    return {
        "valley": float(test.rates[falling[len(falling) * 2 // 3]]),
        "steepest": float(test.rates[np.argmin(slope)]),
        "minimum / 10": float(test.rates[np.argmin(test.smoothed)] / 10),
    }


def longest_decrease(values: Float[np.ndarray, " N"]) -> list[int]:
    """Return the places of a longest strictly decreasing subsequence (patience sorting)."""
    lowest_ends: list[float] = []  # of a subsequence of each length, negated so that it grows
    places: list[int] = []
    before = [-1] * len(values)
    for i, value in enumerate(values):
        length = bisect_left(lowest_ends, -value)
        before[i] = places[length - 1] if length else -1
        if length == len(places):
            places.append(i)
            lowest_ends.append(-value)
        else:
            places[length], lowest_ends[length] = i, -value
    found, place = [], places[-1]
    while place >= 0:
        found.append(place)
        place = before[place]
    return found[::-1]

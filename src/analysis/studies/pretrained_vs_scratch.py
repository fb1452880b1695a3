"""``report=pretrained_vs_scratch``: does a pre-trained start learn faster, and does it end better?

The validation rows choose the learning rates, so the verdict is on the test metric. The validation curves describe the
course of training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ...errors import UserError
from ..comparison import Arm, Comparison
from ..factors import STRATEGY, compare_factors, finetuning_rows, require_strategies
from ..formatting import count_of, in_words, markdown_table, show_difference, show_interval
from ..plots import INTERVAL_BAND, draw_means, needs_log, picture, style_of
from ..reports import Report
from ..statistics import ConfidenceInterval, mean_interval, paired_difference

SCRATCH, VALUE = "scratch", "val_loss"
PICTURE = "pretrained_vs_scratch.png"
HOW = (
    "The verdict is on the test metric. The validation rows chose the rates, so the curves on them are a description "
    "without a verdict, except at the start, where no rate has acted. {scratch} (choice: {choice}) has a {metric} of "
    "{test}. Between logged rows the curves are interpolated linearly."
)


class StartComparison(NamedTuple):
    """One pre-trained arm and scratch.

    Attributes:
        arm: the pre-trained arm.
        start: validation loss minus that of scratch before the first update, paired by seed.
        end: the same after the last update.
        reached: updates by seed until the arm reaches the lowest validation loss of scratch; inf if it never does.
        by: updates by seed until scratch itself reaches it.
        mean: updates until the arm's mean curve reaches the lowest value of scratch's mean curve.
    """

    arm: Arm
    start: ConfidenceInterval
    end: ConfidenceInterval
    reached: Mapping[Any, float]
    by: Mapping[Any, float]
    mean: float


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare every pre-trained arm with training from scratch: on the test metric, and along the validation curves.

    Raises:
        UserError: there is no scratch or no other arm with a result, or the validation loss was not logged.
    """
    require_strategies(table, (SCRATCH,))
    found = compare_factors(table, [STRATEGY]).against(SCRATCH)
    arms = found.at()
    curves = {name: curve for name, arm in arms.items() if (curve := curve_of(history, arm)) is not None}
    if SCRATCH not in curves or len(curves) < 2:
        raise UserError(f"report=pretrained_vs_scratch needs logged values of {VALUE} of {SCRATCH} and of another arm")
    curves = {SCRATCH: curves.pop(SCRATCH), **curves}
    starts = [compare_curves(arms[name], curves[name], curves[SCRATCH]) for name in curves if name != SCRATCH]
    caption = f"{INTERVAL_BAND}\nDotted: the lowest mean of {SCRATCH}; diamond: where an arm reaches it."
    with picture(folder / PICTURE, caption, 4.8) as (ax,):
        draw(ax, curves, starts)
    columns = {
        "arm": lambda s: s.arm.label,
        "choice": lambda s: s.arm.choice,
        found.metric: lambda s: show_interval(s.arm.test),
        f"{found.metric} minus {SCRATCH}": lambda s: show_difference(s.arm.difference),
        f"{in_words(VALUE)} minus {SCRATCH} at the start": lambda s: show_difference(s.start),
        "at the end": lambda s: show_interval(s.end, sign=True),
        f"updates to {SCRATCH}'s lowest {in_words(VALUE)}, by seed": show_reached,
        f"updates of {SCRATCH}": lambda s: show_interval(mean_interval(s.by.values())),
    }
    scratch = arms[SCRATCH]
    how = HOW.format(scratch=SCRATCH, choice=scratch.choice, metric=found.metric, test=show_interval(scratch.test))
    return Report(
        title="Does a pre-trained start learn faster and end better?",
        conclusion=conclude(starts, found),
        body=[markdown_table(columns, starts), how, found.how],
        pictures={PICTURE: "Validation loss over fine-tuning"},
        notes=found.notes,
    )


def curve_of(history: pd.DataFrame | None, arm: Arm) -> pd.DataFrame | None:
    """Return the validation curves of an arm: a row for each logged step of fine-tuning, a column for each seed."""
    rows = finetuning_rows(history, arm)
    if VALUE not in rows:
        return None
    curve = rows.pivot_table(index="step", columns="_seed", values=VALUE).dropna()
    return curve if len(curve) > 1 else None


def first_reach(curve: pd.Series, goal: float) -> float:
    """Return the first update at which a curve is at or below a value, interpolated linearly; inf if never."""
    steps, values = curve.index.to_numpy(dtype=float), curve.to_numpy(dtype=float)
    below = np.flatnonzero(values <= goal)
    if not len(below):
        return math.inf
    i = below[0]
    if i == 0:
        return float(steps[0])
    share = (values[i - 1] - goal) / (values[i - 1] - values[i])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def compare_curves(arm: Arm, own: pd.DataFrame, scratch: pd.DataFrame) -> StartComparison:
    """Compare the validation curves of one arm with those of scratch."""
    seeds = [seed for seed in own if seed in scratch]
    return StartComparison(
        arm=arm,
        start=paired_difference(own.iloc[0].to_dict(), scratch.iloc[0].to_dict()),
        end=paired_difference(own.iloc[-1].to_dict(), scratch.iloc[-1].to_dict()),
        reached={seed: first_reach(own[seed], scratch[seed].min()) for seed in seeds},
        by={seed: float(scratch[seed].idxmin()) for seed in seeds},
        mean=first_reach(own.mean(axis=1), scratch.mean(axis=1).min()),
    )


def show_reached(start: StartComparison) -> str:
    """Write the updates that an arm needs."""
    there = [value for value in start.reached.values() if math.isfinite(value)]
    if not there:
        return "not reached"
    some = f" ({len(there)} of {len(start.reached)} seeds)" if len(there) < len(start.reached) else ""
    return show_interval(mean_interval(there)) + some


def conclude(starts: Sequence[StartComparison], found: Comparison) -> str:
    """Return the verdict on the test metric for the arm that validation ranks first, and its speed as a description."""
    best = min(starts, key=lambda start: found.labels.index(start.arm.label))
    difference, name = best.arm.minus(found.at()[SCRATCH]), best.arm.label
    if difference.n < 2:
        return f"Undecided: {count_of(difference.n, 'common seed')} gives no interval; run more seeds."
    amount = f"{show_interval(difference, sign=True)} on {found.metric}, paired at {difference.n} seeds"
    verdict = {
        1: f"{name} ends better than {SCRATCH}",
        -1: f"{name} ends worse than {SCRATCH}",
        0: f"Undecided whether {name} ends better than {SCRATCH}",
    }[found.verdict(difference)]
    never = sum(map(math.isinf, best.reached.values()))
    if never:
        speed = f"it does not reach {SCRATCH}'s lowest value at {never} of {len(best.reached)} seeds"
    else:
        own, other = (mean_interval(values.values()) for values in (best.reached, best.by))
        speed = (
            f"it reaches {SCRATCH}'s lowest value after {show_interval(own)} updates, {SCRATCH} after {other.mean:.3g}"
        )
    return f"{verdict} ({amount}); on the validation curves, which also chose the rates, {speed}."


def draw(ax: Axes, curves: Mapping[str, pd.DataFrame], starts: Sequence[StartComparison]) -> None:
    """Draw the mean validation curve of every arm and where it reaches the lowest mean of scratch."""
    for place, (name, curve) in enumerate(curves.items()):
        means = [mean_interval(row) for row in curve.to_numpy()]
        draw_means(ax, list(curve.index), means, name, style_of(place) | {"marker": None})
    best = float(curves[SCRATCH].mean(axis=1).min())
    ax.axhline(best, color="#555555", linestyle=":", linewidth=1.5)
    for start in starts:
        if math.isfinite(start.mean):
            colour = style_of(list(curves).index(start.arm.label))["color"]
            ax.plot(start.mean, best, "D", ms=9, mfc="white", mec=colour, mew=2, zorder=5)
    if needs_log(np.concatenate([curve.to_numpy().ravel() for curve in curves.values()])):
        ax.set_yscale("log")
    ax.set_xlabel("updates of fine-tuning")
    ax.set_ylabel(f"{in_words(VALUE)}\nlower is better")

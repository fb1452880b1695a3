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

from ...errors import UserError
from ..comparison import Arm, Comparison
from ..factors import STRATEGY, compare_factors, finetuning_rows, require_strategies
from ..formatting import in_words, markdown_table, show_difference, show_interval, show_mean, too_few
from ..plots import GREY, INTERVAL_BAND, draw_means, needs_log, picture, style_of
from ..reports import Report
from ..statistics import ConfidenceInterval, crossing, mean_interval, paired_difference

SCRATCH, VALUE = "scratch", "val_loss"
PICTURE = "pretrained_vs_scratch.png"
HOW = (
    "The verdict is on the test metric. The validation rows chose the rates, so the curves on them are a description "
    "without a verdict, except at the start, where no rate has acted. {scratch} (choice: {choice}) has a {metric} of "
    "{test}. Between logged rows the curves are interpolated linearly."
)


class StartComparison(NamedTuple):
    """One pre-trained arm and scratch on the validation rows."""

    arm: Arm
    start: ConfidenceInterval  # validation loss minus that of scratch before the first update, paired by seed
    end: ConfidenceInterval  # the same after the last update
    reached: Mapping[Any, float]  # updates by seed to the lowest validation loss of scratch; inf if never reached
    by: Mapping[Any, float]  # updates by seed until scratch itself reaches it
    mean: float  # updates until the arm's mean curve reaches the lowest value of scratch's mean curve


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare every pre-trained arm with training from scratch: on the test metric, and along the validation curves."""
    require_strategies(table, (SCRATCH,))
    found = compare_factors(table, [STRATEGY]).against(SCRATCH)
    arms = found.at()
    curves = {name: curve for name, arm in arms.items() if (curve := curve_of(history, arm)) is not None}
    if SCRATCH not in curves or len(curves) < 2:
        raise UserError(f"report=pretrained_vs_scratch needs logged values of {VALUE} of {SCRATCH} and of another arm")
    curves = {SCRATCH: curves.pop(SCRATCH), **curves}
    starts = [compare_curves(arms[name], curves[name], curves[SCRATCH]) for name in curves if name != SCRATCH]
    draw(curves, starts, folder / PICTURE)
    columns = {
        "arm": lambda s: s.arm.label,
        "choice": lambda s: s.arm.choice,
        found.metric: lambda s: show_interval(s.arm.test),
        f"{found.metric} minus {SCRATCH}": lambda s: show_difference(s.arm.difference),
        f"{in_words(VALUE)} minus {SCRATCH} at the start": lambda s: show_difference(s.start),
        "at the end": lambda s: show_interval(s.end, sign=True),
        f"updates to {SCRATCH}'s lowest {in_words(VALUE)}, by seed": show_reached,
        f"updates of {SCRATCH}": lambda s: show_mean(s.by.values()),
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
    steps = curve.index.to_numpy(dtype=float)
    return max(crossing(steps, goal - curve.to_numpy(dtype=float), log=False), float(steps[0]))


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
    some = f" ({len(there)} of {len(start.reached)} seeds)" if len(there) < len(start.reached) else ""
    return show_mean(there) + some if there else "not reached"


def conclude(starts: Sequence[StartComparison], found: Comparison) -> str:
    """Return the verdict on the test metric for the arm that validation ranks first, and its speed as a description."""
    best = min(starts, key=lambda start: found.labels.index(start.arm.label))
    difference, name = best.arm.minus(found.at()[SCRATCH]), best.arm.label
    if difference.n < 2:
        return too_few(difference.n, "common seed")
    amount = f"{show_interval(difference, sign=True)} on {found.metric}, paired at {difference.n} seeds"
    verdict = {
        1: f"{name} ends better than {SCRATCH}",
        -1: f"{name} ends worse than {SCRATCH}",
        0: f"Undecided whether {name} ends better than {SCRATCH}",
    }[found.verdict(difference)]
    goal = f"{SCRATCH}'s lowest value"
    if never := sum(map(math.isinf, best.reached.values())):
        speed = f"it does not reach {goal} at {never} of {len(best.reached)} seeds"
    else:
        other = mean_interval(best.by.values()).mean
        speed = f"it reaches {goal} after {show_mean(best.reached.values())} updates, {SCRATCH} after {other:.3g}"
    return f"{verdict} ({amount}); on the validation curves, which also chose the rates, {speed}."


def draw(curves: Mapping[str, pd.DataFrame], starts: Sequence[StartComparison], path: Path) -> None:
    """Draw the mean validation curve of every arm and where it reaches the lowest mean of scratch."""
    caption = f"{INTERVAL_BAND}\nDotted: the lowest mean of {SCRATCH}; diamond: where an arm reaches it."
    with picture(path, caption, 4.8) as (ax,):
        for place, (name, curve) in enumerate(curves.items()):
            means = [mean_interval(row) for row in curve.to_numpy()]
            draw_means(ax, list(curve.index), means, name, style_of(place) | {"marker": None})
        best = float(curves[SCRATCH].mean(axis=1).min())
        ax.axhline(best, color=GREY, linestyle=":", linewidth=1.5)
        for place, start in enumerate(starts, 1):  # scratch has the first style
            if math.isfinite(start.mean):
                ax.plot(start.mean, best, "D", ms=9, mfc="white", mec=style_of(place)["color"], mew=2, zorder=5)
        if needs_log(np.concatenate([curve.to_numpy().ravel() for curve in curves.values()])):
            ax.set_yscale("log")
        ax.set_xlabel("updates of fine-tuning")
        ax.set_ylabel(f"{in_words(VALUE)}\nlower is better")

"""``report=pretrained_vs_scratch``: how much sooner, and how much further, does a pre-trained start get?"""

# pandas' own annotations give indexing a union of everything it might return, which no caller can narrow.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ...errors import UserError
from ..analysis import Arm, count_of
from ..conditions import choose, finetuning_rows, lead, notes_of, rates, require_arms, results, tuning
from ..plots import INTERVAL_BAND, draw_means, in_words, legend_below, look_of, needs_log, picture
from ..report import markdown_table, show_interval
from ..statistics import Interval, mean_interval, paired_difference
from ..study import Report

SCRATCH = "scratch"
VALUE = "val_loss"
PICTURE = "pretrained_vs_scratch.png"


class Race(NamedTuple):
    """One pre-trained arm against scratch, on the validation loss.

    Attributes:
        arm: the pre-trained arm.
        start: the difference before the first update, pre-trained minus scratch, paired by seed.
        end: the same after the last.
        test: the difference of the reported metric.
        reached: updates by seed after which the arm has the best that scratch had at that seed; inf where it never has.
        by: updates by seed after which scratch itself had it.
        mean: updates after which the arm's mean curve reaches the best of scratch's mean curve.
    """

    arm: str
    start: Interval
    end: Interval
    test: Interval
    reached: Mapping[Any, float]
    by: Mapping[Any, float]
    mean: float


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare the validation curves of every pre-trained arm with those of training from scratch.

    Raises:
        UserError: there is no scratch or no other arm with a result, or nothing of the validation loss was logged.
    """
    require_arms(table, (SCRATCH,))
    analysis = choose(table, "strategy")
    found = {str(name): arm for (name,), arm in results(analysis).items()}
    curves = {name: curve for name, arm in found.items() if (curve := curve_of(history, arm)) is not None}
    if SCRATCH not in curves or len(curves) < 2:
        raise UserError(f"report=pretrained_vs_scratch needs logged values of {VALUE} of {SCRATCH} and of another arm")
    curves = {SCRATCH: curves.pop(SCRATCH), **curves}
    races = [race(name, found[name], found[SCRATCH], curves) for name in curves if name != SCRATCH]
    caption = f"{INTERVAL_BAND}\nDotted: the best mean of {SCRATCH}; diamond: where an arm reaches it."
    with picture(folder / PICTURE, caption, 4.8) as (ax,):
        draw(ax, curves, races)
    columns = {
        "arm": lambda r: r.arm,
        "choice": lambda r: rates(found[r.arm]),
        f"{in_words(VALUE)} minus {SCRATCH}'s at the start": lambda r: starred(r.start),
        "at the end": lambda r: starred(r.end),
        f"{in_words(analysis.question.metric)} minus {SCRATCH}'s": lambda r: starred(r.test),
        f"updates to reach {SCRATCH}'s best, by seed": show_reached,
        f"{SCRATCH}'s own": lambda r: show_interval(mean_interval(r.by.values())),
    }
    how = (
        f"{SCRATCH} (choice: {rates(found[SCRATCH])}) has a {in_words(analysis.question.metric)} of "
        f"{show_interval(found[SCRATCH].test)}. Between logged rows the curves are taken as straight lines."
    )
    return Report(
        title="How much sooner does a pre-trained start get there?",
        conclusion=conclude(races),
        body="\n\n".join([markdown_table(columns, races), how, tuning(analysis)]),
        pictures={PICTURE: "Validation loss over fine-tuning"},
        notes=notes_of(analysis, table),
    )


def starred(difference: Interval) -> str:
    """Write a difference, marked where its interval excludes 0."""
    return show_interval(difference, sign=True) + " *" * difference.excludes_zero


def show_reached(race: Race) -> str:
    """Write the updates that an arm needs."""
    there = [value for value in race.reached.values() if math.isfinite(value)]
    if not there:
        return "not reached"
    some = f" ({len(there)} of {len(race.reached)} seeds)" if len(there) < len(race.reached) else ""
    return show_interval(mean_interval(there)) + some


def curve_of(history: pd.DataFrame | None, arm: Arm) -> pd.DataFrame | None:
    """Return an arm's validation curves: a row a logged step of fine-tuning, a column a seed."""
    rows = finetuning_rows(history, arm)
    if VALUE not in rows:
        return None
    curve = rows.pivot_table(index="step", columns="_seed", values=VALUE).dropna()
    return curve if len(curve) > 1 else None


def reaches(curve: pd.Series, goal: float) -> float:
    """Return the first update at which a falling curve is at or below a value, on straight lines; inf if never."""
    steps, values = curve.index.to_numpy(dtype=float), curve.to_numpy(dtype=float)
    below = np.flatnonzero(values <= goal)
    if not len(below):
        return math.inf
    i = below[0]
    if i == 0:
        return float(steps[0])
    share = (values[i - 1] - goal) / (values[i - 1] - values[i])
    return float(steps[i - 1] + share * (steps[i] - steps[i - 1]))


def race(name: str, arm: Arm, scratch: Arm, curves: Mapping[str, pd.DataFrame]) -> Race:
    """Compare one arm with scratch."""
    own, other = curves[name], curves[SCRATCH]
    seeds = [seed for seed in own if seed in other]
    return Race(
        arm=name,
        start=paired_difference(own.iloc[0].to_dict(), other.iloc[0].to_dict()),
        end=paired_difference(own.iloc[-1].to_dict(), other.iloc[-1].to_dict()),
        test=lead(arm, scratch),
        reached={seed: reaches(own[seed], other[seed].min()) for seed in seeds},
        by={seed: float(other[seed].idxmin()) for seed in seeds},
        mean=reaches(own.mean(axis=1), other.mean(axis=1).min()),
    )


def conclude(races: Sequence[Race]) -> str:
    """Say in one sentence what the numbers carry, of the arm that is there first."""
    best = min(races, key=lambda r: (sum(map(math.isinf, r.reached.values())), mean_of(r.reached)))
    n = len(best.reached)
    if n < 2:
        return f"Undecided: {count_of(n, 'common seed')} gives no interval, so only more seeds can tell."
    end = "lower" if best.end.high < 0 else "higher" if best.end.low > 0 else "not to be told apart"
    end = f"at the end its validation loss is {end}{' than' if end != 'not to be told apart' else ' from'} {SCRATCH}'s"
    gap = f"{end} ({show_interval(best.end, sign=True)}, paired at {n} seeds)"
    never = sum(map(math.isinf, best.reached.values()))
    if never:
        return f"Undecided: {best.arm} does not reach {SCRATCH}'s best validation loss at {never} of {n} seeds; {gap}."
    saved = paired_difference(best.by, best.reached)
    needs = (
        f"{show_interval(mean_interval(best.reached.values()))} updates where {SCRATCH} needs {mean_of(best.by):.3g}"
    )
    if saved.low > 0:
        return f"{best.arm} reaches {SCRATCH}'s best validation loss after {needs}; {gap}."
    return f"Undecided whether {best.arm} is sooner: it reaches {SCRATCH}'s best validation loss after {needs}; {gap}."


def mean_of(values: Mapping[Any, float]) -> float:
    """Return the mean of the finite values; inf where there is none."""
    finite = [value for value in values.values() if math.isfinite(value)]
    return sum(finite) / len(finite) if finite else math.inf


def draw(ax: Axes, curves: Mapping[str, pd.DataFrame], races: Sequence[Race]) -> None:
    """Draw every arm's mean validation curve and where it reaches the best mean of scratch."""
    for place, (name, curve) in enumerate(curves.items()):
        means = [mean_interval(row) for row in curve.to_numpy()]
        draw_means(ax, list(curve.index), means, name, look_of(place) | {"marker": None})
    best = float(curves[SCRATCH].mean(axis=1).min())
    ax.axhline(best, color="#555555", linestyle=":", linewidth=1.5)
    for one in races:
        if math.isfinite(one.mean):
            colour = look_of(list(curves).index(one.arm))["color"]
            ax.plot(one.mean, best, "D", ms=9, mfc="white", mec=colour, mew=2, zorder=5)
    if needs_log(np.concatenate([curve.to_numpy().ravel() for curve in curves.values()])):
        ax.set_yscale("log")
    ax.set_xlabel("updates of fine-tuning")
    ax.set_ylabel(f"{in_words(VALUE)}\nlower is better")
    legend_below([ax])

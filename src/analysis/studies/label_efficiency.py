"""``report=label_efficiency``: how many times fewer labels does a pre-trained start need?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float
from matplotlib.axes import Axes

from ...errors import UserError, listed
from ..comparison import Arm, Comparison, config_columns
from ..export import varies
from ..factors import LABELS, STRATEGY, X_LABEL, common_seeds, compare_factors, require_strategies, scores
from ..formatting import count_of, markdown_table
from ..plots import INTERVAL_BAND, draw_lines, legend_below, picture
from ..reports import Report
from ..statistics import bootstrap, log_crossing

SCRATCH = "scratch"
PICTURE = "label_efficiency.png"


class LabelSaving(NamedTuple):
    """How many times fewer labels an arm needs, with its bootstrap interval; 0 if it never reaches the goal.

    ``limit`` is the largest factor that the range can show: the labels of scratch's best over the fewest tried.
    """

    arm: str
    factor: float
    low: float
    high: float
    limit: float

    def text(self) -> str:
        """Return the factor with its interval."""
        low, at, high = (self.bound(value) for value in (self.low, self.factor, self.high))
        return at if low == at == high else f"{at} ({low} to {high})"

    def bound(self, factor: float) -> str:
        """Write a factor, which the tried range may cut off."""
        if math.isnan(factor):
            return "?"
        if factor == 0:
            return "not reached"
        return ("at least " if factor >= self.limit else "") + f"{factor:.2g}"


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare every pre-trained arm with training from scratch over the number of labels.

    The arms are strategies or, if pre-training varies, each pre-training with each strategy.

    Raises:
        UserError: there is no scratch or nothing else, or the arms share fewer than two numbers of labels.
    """
    require_strategies(table, (SCRATCH,))
    table = name_by_pretraining(table)
    found = compare_factors(table, [STRATEGY], [LABELS])
    arms = [str(name) for name in dict.fromkeys(table[STRATEGY].dropna()) if name != SCRATCH]
    labels = [n for (n,) in found.levels if found.at(n).keys() >= {SCRATCH, *arms}]
    if not arms or len(labels) < 2:
        raise UserError(
            f"report=label_efficiency needs {SCRATCH}, another strategy and at least 2 values of {LABELS} at which all "
            f"of them have a result; this sweep has {listed([SCRATCH, *arms])} and {len(labels)} such values"
        )
    curves = {arm: [found.at(n)[arm] for n in labels] for arm in (SCRATCH, *arms)}
    seeds = common_seeds(arm for curve in curves.values() for arm in curve)
    values = {arm: scores(curve, seeds, found.spec.higher) for arm, curve in curves.items()}
    savings = [measure(arm, labels, values[arm], values[SCRATCH]) for arm in arms] if seeds else []
    savings.sort(key=lambda saving: -saving.factor)
    best = float(values[SCRATCH].mean(1).max()) * (1 if found.spec.higher else -1) if seeds else math.nan
    with picture(folder / PICTURE, f"{INTERVAL_BAND} Dotted: the best of {SCRATCH}.", 4.8) as (ax,):
        draw(ax, found, curves, labels, best)
    factors = {"arm": lambda s: s.arm, "times fewer labels (95 % bootstrap interval)": LabelSaving.text}
    how = (
        f"A factor is the number of labels at which the mean of {SCRATCH} is best, divided by that at which the mean "
        "of the arm reaches the same value, interpolated linearly in the logarithm of the labels; its interval is the "
        f"expanded percentile bootstrap over {count_of(len(seeds), 'seed')}."
    )
    by_labels = markdown_table(found.side_by_side(list(curves)), [(n,) for n in labels])
    return Report(
        title="How many times fewer labels does a pre-trained start need?",
        conclusion=conclude(savings, found.metric, best, len(seeds)),
        body=[markdown_table(factors, savings), how, by_labels, found.how],
        pictures={PICTURE: "Each arm over the number of labels"},
        notes=found.notes,
    )


def name_by_pretraining(table: pd.DataFrame) -> pd.DataFrame:
    """Return the jobs with strategies named after their pre-training, ``simclr + full``, if it varies.

    Scratch uses no pre-training, so its jobs are equal under every pre-training; one of each is kept.
    """
    if "pretrain" not in table or not varies(table["pretrain"]):
        return table
    scratch = table[STRATEGY] == SCRATCH
    first = table.loc[scratch, "pretrain"].min()
    named = table.assign(strategy=table[STRATEGY].where(scratch, table["pretrain"] + " + " + table[STRATEGY]))
    own = [name for name in config_columns(table) if name == "pretrain" or name.startswith("pretrain.")]
    return named[~scratch | (table["pretrain"] == first)].drop(columns=own)


def measure(
    arm: str,
    labels: Sequence[float],
    values: Float[np.ndarray, "labels seeds"],
    scratch: Float[np.ndarray, "labels seeds"],
) -> LabelSaving:
    """Return how many times fewer labels an arm needs than scratch; higher ``values`` are better."""

    def factor(drawn: Any) -> float:
        own = scratch[:, drawn].mean(1)
        reached = log_crossing(labels, values[:, drawn].mean(1) - own.max())
        return labels[int(own.argmax())] / max(reached, labels[0])

    everyone = np.arange(values.shape[1])
    limit = labels[int(scratch.mean(1).argmax())] / labels[0]
    return LabelSaving(arm, factor(everyone), *bootstrap(factor, len(everyone)), limit)


def conclude(savings: Sequence[LabelSaving], metric: str, best: float, seeds: int) -> str:
    """Return the conclusion in one sentence; ``savings`` come in descending order of their factor."""
    goal = f"{SCRATCH}'s best {metric} of {best:.3g}"
    if seeds < 2:
        return f"Undecided: {count_of(seeds, 'seed')} common to all points give no interval; run more seeds."
    over = f"95 % bootstrap intervals over {count_of(seeds, 'seed')}"
    fewer = [f"{s.arm} needs {s.bound(s.factor)} times fewer labels ({s.low:.2g} to {s.high:.2g})" for s in savings
             if s.low > 1]  # fmt: skip
    rest = [saving.arm for saving in savings if not saving.low > 1 and saving.high >= 1]
    more = [saving.arm for saving in savings if saving.high < 1]
    short = [f"{listed(more)} {'needs' if len(more) == 1 else 'need'} more labels or never reaches it"] if more else []
    if not fewer and rest:
        never = f"; {short[0]}" if short else ""
        return f"Undecided whether {listed(rest)} can reach {goal} with fewer labels{never} ({over})."
    parts = [", ".join(fewer)] if fewer else []
    parts += [f"undecided for {listed(rest)}"] if rest else []
    return f"To reach {goal}, {'; '.join(parts + short)} ({over})."


def draw(
    ax: Axes, found: Comparison, curves: Mapping[str, Sequence[Arm]], labels: Sequence[float], best: float
) -> None:
    """Draw the metric of each arm over the number of labels, and the best value of scratch as a dotted line."""
    draw_lines(ax, labels, curves, (X_LABEL, found.axis_label))
    if math.isfinite(best):
        ax.axhline(best, color="#555555", linestyle=":", linewidth=1.5)
    legend_below([ax])

"""``report=label_efficiency``: how many times fewer labels does a pre-trained start need?"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from ...errors import listed
from ..comparison import config_columns
from ..export import varies
from ..factors import LABELS, STRATEGY, X_LABEL, compare_factors, curves_over_labels, require_strategies
from ..formatting import count_of, markdown_table
from ..plots import GREY, INTERVAL_BAND, draw_lines, picture
from ..reports import Report
from ..statistics import bootstrap, crossing

SCRATCH = "scratch"
PICTURE = "label_efficiency.png"
HOW = (
    f"A factor is the number of labels at which the mean of {SCRATCH} is best, divided by that at which the mean of "
    "the arm reaches the same value, interpolated linearly in the logarithm of the labels; its interval is the "
    "expanded percentile bootstrap over {n}."
)


class LabelSaving(NamedTuple):
    """How many times fewer labels an arm needs; 0 if it never reaches the goal."""

    arm: str
    factor: float
    low: float  # bounds of the bootstrap interval
    high: float
    limit: float  # the largest factor that the range can show: the labels of scratch's best over the fewest tried

    def text(self) -> str:
        """Return the factor with its interval."""
        low, at, high = (self.bound(value) for value in (self.low, self.factor, self.high))
        return at if low == at == high else f"{at} ({low} to {high})"

    def bound(self, factor: float) -> str:
        """Write a factor, which the tried range may cut off."""
        if math.isnan(factor):
            return "?"
        return "not reached" if factor == 0 else "at least " * bool(factor >= self.limit) + f"{factor:.2g}"


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare every pre-trained arm (a strategy, or a pre-training with a strategy) with training from scratch."""
    require_strategies(table, (SCRATCH,))
    table = name_by_pretraining(table)
    found = compare_factors(table, [STRATEGY], [LABELS])
    arms = [str(name) for name in dict.fromkeys(table[STRATEGY].dropna()) if name != SCRATCH]
    labels, curves, seeds, values = curves_over_labels(found, (SCRATCH, *arms), "label_efficiency")
    savings = [measure(arm, labels, values[arm], values[SCRATCH]) for arm in arms] if seeds else []
    savings.sort(key=lambda saving: -saving.factor)
    best = float(values[SCRATCH].mean(1).max()) * (1 if found.spec.higher else -1) if seeds else math.nan
    with picture(folder / PICTURE, f"{INTERVAL_BAND} Dotted: the best of {SCRATCH}.", 4.8) as (ax,):
        draw_lines(ax, labels, curves, (X_LABEL, found.axis_label))
        if seeds:
            ax.axhline(best, color=GREY, linestyle=":", linewidth=1.5)
    factors = {"arm": lambda s: s.arm, "times fewer labels (95 % bootstrap interval)": LabelSaving.text}
    by_labels = markdown_table(found.side_by_side(list(curves)), [(n,) for n in labels])
    how = HOW.format(n=count_of(len(seeds), "seed"))
    return Report(
        title="How many times fewer labels does a pre-trained start need?",
        conclusion=conclude(savings, f"{SCRATCH}'s best {found.metric} of {best:.3g}", len(seeds)),
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
        return labels[int(own.argmax())] / max(crossing(labels, values[:, drawn].mean(1) - own.max()), labels[0])

    n = values.shape[1]
    limit = labels[int(scratch.mean(1).argmax())] / labels[0]
    return LabelSaving(arm, factor(np.arange(n)), *bootstrap(factor, n), limit)


def conclude(savings: Sequence[LabelSaving], goal: str, seeds: int) -> str:
    """Return the conclusion in one sentence; ``savings`` come in descending order of their factor."""
    if seeds < 2:
        return f"Undecided: {count_of(seeds, 'seed')} common to all points give no interval; run more seeds."
    over = f"95 % bootstrap intervals over {count_of(seeds, 'seed')}"
    few = [f"{s.arm} needs {s.bound(s.factor)} times fewer labels ({s.low:.2g} to {s.high:.2g})" for s in savings
           if s.low > 1]  # fmt: skip
    rest = [saving.arm for saving in savings if not saving.low > 1 and saving.high >= 1]
    more = [saving.arm for saving in savings if saving.high < 1]
    short = [f"{listed(more)} {'needs' if len(more) == 1 else 'need'} more labels or never reaches it"] if more else []
    if not few and rest:
        never = "".join(f"; {text}" for text in short)
        return f"Undecided whether {listed(rest)} can reach {goal} with fewer labels{never} ({over})."
    parts = [*([", ".join(few)] if few else []), *([f"undecided for {listed(rest)}"] if rest else []), *short]
    return f"To reach {goal}, {'; '.join(parts)} ({over})."

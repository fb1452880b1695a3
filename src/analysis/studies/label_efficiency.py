"""``report=label_efficiency``: how many times fewer labels does a pre-trained start need?"""

# pandas' own annotations give indexing a union of everything it might return, which no caller can narrow.
# pyright: reportArgumentType=false, reportReturnType=false

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
from ..analysis import Analysis, Arm, config_columns, show
from ..conditions import choose, common_seeds, direction, notes_of, require_arms, results, scores, seeds_word, tuning
from ..export import varies
from ..plots import INTERVAL_BAND, draw_means, in_words, legend_below, look_of, picture, set_ticks
from ..report import markdown_table, show_interval
from ..statistics import bootstrap, log_crossing
from ..study import Report

SCRATCH = "scratch"
LABELS = "data.train_rows"
PICTURE = "label_efficiency.png"


class Saving(NamedTuple):
    """How many times fewer labels an arm needs; 0 where it never gets there.

    ``at_least`` is the greatest number that the range can show: the labels that scratch needs over the fewest tried.
    """

    arm: str
    factor: float
    low: float
    high: float
    at_least: float

    def text(self) -> str:
        """Write the factor with its interval."""
        low, at, high = (self.bound(value) for value in (self.low, self.factor, self.high))
        return at if low == at == high else f"{at} ({low} to {high})"

    def bound(self, factor: float) -> str:
        """Write a factor, which the range that was tried may cut off."""
        if math.isnan(factor):
            return "?"
        if factor == 0:
            return "not reached"
        return ("at least " if factor >= self.at_least else "") + f"{factor:.2g}"


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare every pre-trained arm with training from scratch over the number of labels.

    Arms are strategies; where pre-training was swept, each pre-training with each strategy.

    Raises:
        UserError: there is no scratch or nothing beside it, or no two numbers of labels at which all have a result.
    """
    require_arms(table, (SCRATCH,))
    table = told_by_pretraining(table)
    analysis = choose(table, "strategy", LABELS)
    found = results(analysis)
    arms = [str(name) for name in dict.fromkeys(table["strategy"].dropna()) if name != SCRATCH]
    labels = sorted(n for name, n in found if name == SCRATCH and all((arm, n) in found for arm in arms))
    if not arms or len(labels) < 2:
        raise UserError(
            f"report=label_efficiency needs {SCRATCH}, another strategy and at least 2 values of {LABELS} at which all "
            f"of them have a result; this sweep has {listed([SCRATCH, *arms])} and {len(labels)} such values"
        )
    curves = {arm: [found[arm, n] for n in labels] for arm in (SCRATCH, *arms)}
    seeds = common_seeds(arm for curve in curves.values() for arm in curve)
    values = {arm: scores(curve, seeds, analysis.question.higher) for arm, curve in curves.items()}
    savings = [measure(arm, labels, values[arm], values[SCRATCH]) for arm in arms] if seeds else []
    savings.sort(key=lambda saving: -saving.factor)
    best = best_of_scratch(values[SCRATCH], analysis.question.higher) if seeds else math.nan
    with picture(folder / PICTURE, f"{INTERVAL_BAND} Dotted: the best of {SCRATCH}.", 4.8) as (ax,):
        draw(ax, analysis, curves, labels, best)
    columns = {"labels": lambda n: f"{n:g}"} | {
        arm: lambda n, arm=arm: f"{show_interval(found[arm, n].test)} (lr {show_rate(found[arm, n])})" for arm in curves
    }
    factors = {"arm": lambda s: s.arm, "times fewer labels (95 % bootstrap interval)": Saving.text}
    how = (
        f"A factor is the labels at which the mean of {SCRATCH} is best over those at which the arm's mean reaches "
        "that score, interpolated linearly in the logarithm of the labels; its interval is the expanded percentile "
        f"bootstrap over {seeds_word(seeds)}."
    )
    return Report(
        title="How many times fewer labels does a pre-trained start need?",
        conclusion=conclude(savings, analysis.question.metric, best, seeds),
        body="\n\n".join([markdown_table(factors, savings), how, markdown_table(columns, labels), tuning(analysis)]),
        pictures={PICTURE: "What each arm makes of its labels"},
        notes=notes_of(analysis, table),
    )


def told_by_pretraining(table: pd.DataFrame) -> pd.DataFrame:
    """Return the jobs with strategies named after what came before them, ``simclr + full``, where that varies.

    Scratch has nothing before it: its jobs are the same under every pre-training of a sweep, and one of each is kept.
    """
    if "pretrain" not in table or not varies(table["pretrain"]):
        return table
    scratch = table["strategy"] == SCRATCH
    first = table.loc[scratch, "pretrain"].min()
    named = table.assign(strategy=table["strategy"].where(scratch, table["pretrain"] + " + " + table["strategy"]))
    own = [name for name in config_columns(table) if name == "pretrain" or name.startswith("pretrain.")]
    return named[~scratch | (table["pretrain"] == first)].drop(columns=own)


def show_rate(arm: Arm) -> str:
    """Write the learning rate that was chosen."""
    return show((arm.chosen or {}).get("lr_fine", arm.jobs["lr_fine"].iloc[0] if "lr_fine" in arm.jobs else "-"))


def best_of_scratch(values: Float[np.ndarray, "labels seeds"], higher: bool) -> float:
    """Return the best mean over the numbers of labels, in the metric's own direction."""
    return float(values.mean(1).max()) * (1 if higher else -1)


def measure(
    arm: str,
    labels: Sequence[float],
    values: Float[np.ndarray, "labels seeds"],
    scratch: Float[np.ndarray, "labels seeds"],
) -> Saving:
    """Measure how many times fewer labels an arm needs than scratch; in ``values`` more is better."""

    def factor(drawn: Any) -> float:
        own = scratch[:, drawn].mean(1)
        reached = log_crossing(labels, values[:, drawn].mean(1) - own.max())
        return labels[int(own.argmax())] / max(reached, labels[0])

    everyone = np.arange(values.shape[1])
    at_least = labels[int(scratch.mean(1).argmax())] / labels[0]
    return Saving(arm, factor(everyone), *bootstrap(factor, len(everyone)), at_least)


def conclude(savings: Sequence[Saving], metric: str, best: float, seeds: Sequence[Any]) -> str:
    """Say in one sentence what the numbers carry; ``savings`` come by falling factor."""
    goal = f"{SCRATCH}'s best {in_words(metric)} of {best:.3g}"
    if len(seeds) < 2:
        return f"Undecided: {seeds_word(seeds)} common to all points give no interval, so only more seeds can tell."
    fewer = [saving for saving in savings if saving.low > 1]
    rest = [saving.arm for saving in savings if not saving.low > 1 and saving.high >= 1]
    more = [saving.arm for saving in savings if saving.high < 1]
    short = f"{listed(more)} {'does' if len(more) == 1 else 'do'} not get there with as few"
    over = f"95 % bootstrap intervals over {seeds_word(seeds)}"
    if not fewer and rest:
        never = f"; {short}" if more else ""
        return f"Undecided whether {listed(rest)} can reach {goal} with fewer labels{never} ({over})."
    parts = [", ".join(f"{s.arm} needs {s.bound(s.factor)} times fewer labels ({span_of(s)})" for s in fewer)]
    parts += [f"for {listed(rest)} it is undecided"] if rest else []
    parts += [short] if more else []
    said = "; ".join(part for part in parts if part)
    return f"To reach {goal}, {said} ({over})."


def span_of(saving: Saving) -> str:
    """Write a factor's interval."""
    return f"{saving.low:.2g} to {saving.high:.2g}"


def draw(
    ax: Axes, analysis: Analysis, curves: Mapping[str, Sequence[Arm]], labels: Sequence[float], best: float
) -> None:
    """Draw each arm's metric over the number of labels, and scratch's best as a line to reach."""
    for place, (name, curve) in enumerate(curves.items()):
        draw_means(ax, labels, [arm.test for arm in curve], name, look_of(place))
    if math.isfinite(best):
        ax.axhline(best, color="#555555", linestyle=":", linewidth=1.5)
    set_ticks(ax, labels)
    ax.set_xlabel("labelled rows to fine-tune on")
    ax.set_ylabel(direction(analysis))
    legend_below([ax])

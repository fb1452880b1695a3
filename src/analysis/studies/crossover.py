"""``report=crossover``: from how many labels on is full fine-tuning better than a linear probe?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from ...errors import UserError
from ..analysis import Analysis, Arm
from ..conditions import (
    better,
    choose,
    common_seeds,
    direction,
    lead,
    notes_of,
    rates,
    require_arms,
    results,
    scores,
    seeds_word,
    tuning,
)
from ..plots import INTERVAL_BAND, draw_means, in_words, legend_below, look_of, picture, set_ticks
from ..report import markdown_table, show_interval
from ..statistics import Interval, bootstrap, log_crossing
from ..study import Report

PROBE, FULL = "linear_probe", "full"
LABELS = "data.train_rows"
PICTURE = "crossover.png"


class Crossing(NamedTuple):
    """Where full fine-tuning comes to be better than the probe and stays so.

    ``at`` and the bounds of its bootstrap interval are in labels; ``-inf`` stands for "before the least that was
    tried", ``inf`` for "beyond the most". ``leads`` are full minus probe by number of labels, in the metric's unit.
    """

    at: float
    low: float
    high: float
    leads: Mapping[float, Interval]
    seeds: Sequence[Any]


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare the probe and full fine-tuning at each number of labels.

    Raises:
        UserError: the sweep lacks one of the two, or has no two numbers of labels at which both have a result.
    """
    require_arms(table, (PROBE, FULL))
    table = table.loc[table["strategy"].isin((PROBE, FULL))]
    analysis = choose(table, "strategy", LABELS)
    found = results(analysis)
    labels = sorted(n for name, n in found if name == FULL and (PROBE, n) in found)
    if len(labels) < 2:
        raise UserError(
            f"report=crossover needs at least 2 values of {LABELS} at which {PROBE} and {FULL} both have a result; "
            f"this sweep has {len(labels)}"
        )
    crossing = find_crossing({n: (found[PROBE, n], found[FULL, n]) for n in labels}, analysis.question.higher)
    with picture(folder / PICTURE, f"{INTERVAL_BAND} Grey: where full overtakes, with its interval.", 4.6, 2) as axes:
        draw(axes, analysis, found, crossing)
    columns = {
        "labels": lambda n: f"{n:g}",
        f"{PROBE}'s choice": lambda n: rates(found[PROBE, n]),
        f"{FULL}'s choice": lambda n: rates(found[FULL, n]),
        PROBE: lambda n: show_interval(found[PROBE, n].test),
        FULL: lambda n: show_interval(found[FULL, n].test),
        f"{FULL} minus {PROBE}": lambda n: (
            show_interval(crossing.leads[n], sign=True) + " *" * crossing.leads[n].excludes_zero
        ),
    }
    how = (
        "The crossing is interpolated between the means, linearly in the logarithm of the labels; its interval is the "
        f"expanded percentile bootstrap over {seeds_word(crossing.seeds)}."
    )
    return Report(
        title="How many labels until full fine-tuning beats the linear probe?",
        conclusion=conclude(crossing, analysis.question.metric, analysis.question.higher),
        body="\n\n".join([markdown_table(columns, labels), tuning(analysis), how]),
        pictures={PICTURE: "Full fine-tuning against the probe"},
        notes=notes_of(analysis, table),
    )


def find_crossing(pairs: Mapping[float, tuple[Arm, Arm]], higher: bool) -> Crossing:
    """Find where the second arm of each pair overtakes the first for good; ``pairs`` come by rising labels."""
    labels = list(pairs)
    seeds = common_seeds(arm for pair in pairs.values() for arm in pair)
    probe, full = (scores([pair[i] for pair in pairs.values()], seeds, higher) for i in (0, 1))
    gain = full - probe
    leads = {n: lead(second, first) for n, (first, second) in pairs.items()}
    if not seeds:
        return Crossing(math.nan, math.nan, math.nan, leads, seeds)
    at = log_crossing(labels, gain.mean(1), last=True)
    low, high = bootstrap(lambda drawn: log_crossing(labels, gain[:, drawn].mean(1), last=True), len(seeds))
    return Crossing(at, low, high, leads, seeds)


def conclude(crossing: Crossing, metric: str, higher: bool) -> str:
    """Say in one sentence what the numbers carry."""
    labels, name, n = list(crossing.leads), in_words(metric), seeds_word(crossing.seeds)
    span = f"{labels[0]:g} to {labels[-1]:g} labels"
    if len(crossing.seeds) < 2:
        return f"Undecided: {n} common to all points of {span} give no interval, so only more seeds can tell."
    decided = {k: better(difference, higher) for k, difference in crossing.leads.items()}
    ahead = [k for k, verdict in decided.items() if verdict > 0]
    behind = [k for k, verdict in decided.items() if verdict < 0]
    if math.isinf(crossing.at):
        if not ahead and not behind:
            return (
                f"Undecided: at none of {span} does the paired interval of the {name} of {FULL} and {PROBE} exclude 0."
            )
        leader, where = (PROBE, behind) if crossing.at > 0 else (FULL, ahead)
        at = f"with paired 95 % intervals that exclude 0 at {len(where)} of {len(labels)} numbers of labels"
        what = "is ahead throughout" if crossing.at < 0 else "is ahead at the end"
        return f"No crossing in the range: from {span}, {leader} {what} on {name}, {at} ({n})."
    if math.isinf(crossing.low) or math.isinf(crossing.high):
        low = "below the range" if math.isinf(crossing.low) else f"{crossing.low:.3g}"
        high = "beyond the range" if math.isinf(crossing.high) else f"{crossing.high:.3g}"
        return (
            f"Undecided: the mean {name} of {FULL} passes {PROBE}'s at about {crossing.at:.3g} labels, but the 95 % "
            f"bootstrap interval over {n} reaches from {low} to {high} ({span} were tried)."
        )
    return (
        f"{FULL} overtakes {PROBE} on {name} at about {crossing.at:.3g} labels "
        f"(95 % bootstrap interval over {n}: {crossing.low:.3g} to {crossing.high:.3g})."
    )


def draw(axes: Sequence[Axes], analysis: Analysis, found: Mapping[tuple[Any, ...], Arm], crossing: Crossing) -> None:
    """Draw both arms on the left and their difference on the right, over the number of labels."""
    labels = list(crossing.leads)
    for place, name in enumerate((PROBE, FULL)):
        draw_means(axes[0], labels, [found[name, n].test for n in labels], name, look_of(place))
    difference = look_of(2) | {"linestyle": "-"}
    draw_means(axes[1], labels, list(crossing.leads.values()), f"{FULL} minus {PROBE}, paired by seed", difference)
    axes[1].axhline(0, color="#555555", linewidth=1)
    axes[0].set_ylabel(direction(analysis))
    axes[1].set_ylabel(f"difference in {in_words(analysis.question.metric)}")
    for ax in axes:
        set_ticks(ax, labels)
        ax.set_xlabel("labelled rows to fine-tune on")
        if math.isfinite(crossing.at):
            low, high = max(crossing.low, labels[0]), min(crossing.high, labels[-1])
            ax.axvspan(low, high, color="#999999", alpha=0.15, linewidth=0)
            ax.axvline(crossing.at, color="#777777", linestyle=":", linewidth=1.5)
    legend_below(axes)

"""``report=crossover``: from how many labels on is full fine-tuning better than a linear probe?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from ...errors import UserError
from ..comparison import Comparison
from ..factors import LABELS, STRATEGY, X_LABEL, common_seeds, compare_factors, require_strategies, scores
from ..formatting import count_of, markdown_table, show_difference
from ..plots import INTERVAL_BAND, draw_lines, draw_means, legend_below, picture, set_ticks, style_of
from ..reports import Report
from ..statistics import ConfidenceInterval, bootstrap, log_crossing

PROBE, FULL = "linear_probe", "full"
PICTURE = "crossover.png"


class Crossing(NamedTuple):
    """The number of labels from which on full fine-tuning stays better than the probe.

    ``at`` and the bounds of its bootstrap interval are in labels; ``-inf`` lies below the smallest tried number,
    ``inf`` above the largest. ``differences`` are full minus probe by number of labels.
    """

    at: float
    low: float
    high: float
    differences: Mapping[float, ConfidenceInterval]
    seeds: Sequence[Any]


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare the probe and full fine-tuning at each number of labels.

    Raises:
        UserError: the sweep lacks one of the two, or they share fewer than two numbers of labels.
    """
    require_strategies(table, (PROBE, FULL))
    found = compare_factors(table.loc[table[STRATEGY].isin((PROBE, FULL))], [STRATEGY], [LABELS])
    labels = [n for (n,) in found.levels if len(found.at(n)) == 2]
    if len(labels) < 2:
        raise UserError(
            f"report=crossover needs at least 2 values of {LABELS} at which {PROBE} and {FULL} both have a result; "
            f"this sweep has {len(labels)}"
        )
    crossing = find_crossing(found, labels)
    with picture(folder / PICTURE, f"{INTERVAL_BAND} Grey: the crossing with its interval.", 4.6, 2) as axes:
        draw(axes, found, crossing)
    columns = found.side_by_side([PROBE, FULL])
    columns[f"{FULL} minus {PROBE}"] = lambda level: show_difference(crossing.differences[level[0]])
    how = (
        "The crossing is interpolated between the means, linearly in the logarithm of the number of labels; its "
        f"interval is the expanded percentile bootstrap over {count_of(len(crossing.seeds), 'seed')}."
    )
    return Report(
        title="From how many labels on does full fine-tuning beat the linear probe?",
        conclusion=conclude(crossing, found),
        body=[markdown_table(columns, [(n,) for n in labels]), found.how, how],
        pictures={PICTURE: "Full fine-tuning and the probe"},
        notes=found.notes,
    )


def find_crossing(found: Comparison, labels: Sequence[float]) -> Crossing:
    """Return where full fine-tuning overtakes the probe for good; ``labels`` are ascending."""
    probe, full = ([found.at(n)[name] for n in labels] for name in (PROBE, FULL))
    differences = {n: after.minus(before) for n, before, after in zip(labels, probe, full, strict=True)}
    seeds = common_seeds([*probe, *full])
    if not seeds:
        return Crossing(math.nan, math.nan, math.nan, differences, seeds)
    higher = found.spec.higher
    gain = scores(full, seeds, higher) - scores(probe, seeds, higher)
    at = log_crossing(labels, gain.mean(1), last=True)
    low, high = bootstrap(lambda drawn: log_crossing(labels, gain[:, drawn].mean(1), last=True), len(seeds))
    return Crossing(at, low, high, differences, seeds)


def conclude(crossing: Crossing, found: Comparison) -> str:
    """Return the conclusion in one sentence."""
    labels, n = list(crossing.differences), count_of(len(crossing.seeds), "seed")
    span = f"{labels[0]:g} to {labels[-1]:g} labels"
    if len(crossing.seeds) < 2:
        return f"Undecided: {n} common to all points of {span} give no interval; run more seeds."
    verdicts = [found.verdict(difference) for difference in crossing.differences.values()]
    if math.isinf(crossing.at):
        if not any(verdicts):
            return f"Undecided: at {span}, no paired interval of {FULL} minus {PROBE} on {found.metric} excludes 0."
        leader, decided = (PROBE, -1) if crossing.at > 0 else (FULL, 1)
        where = "at every number of labels" if crossing.at < 0 else "at the largest number of labels"
        return (
            f"No crossing from {span}: {leader} has the better mean {found.metric} {where}; the paired 95 % interval "
            f"excludes 0 at {verdicts.count(decided)} of {len(labels)} numbers of labels ({n})."
        )
    if math.isinf(crossing.low) or math.isinf(crossing.high):
        low = "below the range" if math.isinf(crossing.low) else f"{crossing.low:.3g}"
        high = "above the range" if math.isinf(crossing.high) else f"{crossing.high:.3g}"
        return (
            f"Undecided: the mean {found.metric} of {FULL} passes that of {PROBE} at about {crossing.at:.3g} labels, "
            f"but the 95 % bootstrap interval over {n} reaches from {low} to {high} (tried: {span})."
        )
    return (
        f"{FULL} overtakes {PROBE} on {found.metric} at about {crossing.at:.3g} labels "
        f"(95 % bootstrap interval over {n}: {crossing.low:.3g} to {crossing.high:.3g})."
    )


def draw(axes: Sequence[Axes], found: Comparison, crossing: Crossing) -> None:
    """Draw both arms on the left and their difference on the right over the number of labels."""
    labels = list(crossing.differences)
    lines = {name: [found.at(n)[name] for n in labels] for name in (PROBE, FULL)}
    draw_lines(axes[0], labels, lines, (X_LABEL, found.axis_label))
    style = style_of(2) | {"linestyle": "-"}
    draw_means(axes[1], labels, list(crossing.differences.values()), f"{FULL} minus {PROBE}, paired by seed", style)
    axes[1].axhline(0, color="#555555", linewidth=1)
    set_ticks(axes[1], labels, X_LABEL)
    axes[1].set_ylabel(f"difference in {found.metric}")
    for ax in axes:
        if math.isfinite(crossing.at):
            low, high = max(crossing.low, labels[0]), min(crossing.high, labels[-1])
            ax.axvspan(low, high, color="#999999", alpha=0.15, linewidth=0)
            ax.axvline(crossing.at, color="#777777", linestyle=":", linewidth=1.5)
    legend_below(axes)

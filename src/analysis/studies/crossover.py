"""``report=crossover``: from how many labels on is full fine-tuning better than a linear probe?"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import pandas as pd

from ..comparison import Arm, Comparison
from ..factors import LABELS, STRATEGY, X_LABEL, LabelCurves, compare_factors, curves_over_labels, require_strategies
from ..formatting import count_of, markdown_table, show_difference
from ..plots import GREY, INTERVAL_BAND, draw_lines, draw_means, picture, set_ticks, style_of
from ..reports import Report
from ..statistics import ConfidenceInterval, bootstrap, crossing

PROBE, FULL = "linear_probe", "full"
PICTURE = "crossover.png"
HOW = (
    "The crossing is interpolated between the means, linearly in the logarithm of the number of labels; its interval "
    "is the expanded percentile bootstrap over {n}."
)


class Overtaking(NamedTuple):
    """The number of labels from which on full fine-tuning stays better than the probe.

    A number of labels is ``-inf`` below the tried range and ``inf`` above it.
    """

    at: float
    low: float  # bounds of the bootstrap interval
    high: float
    seeds: int
    differences: Mapping[float, ConfidenceInterval]  # full minus probe by number of labels


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare the probe and full fine-tuning at each number of labels."""
    require_strategies(table, (PROBE, FULL))
    found = compare_factors(table.loc[table[STRATEGY].isin((PROBE, FULL))], [STRATEGY], [LABELS])
    curves = curves_over_labels(found, (PROBE, FULL), "crossover")
    overtaking = find_overtaking(curves)
    draw(found, curves.arms, overtaking, folder / PICTURE)
    columns = found.side_by_side([PROBE, FULL])
    columns[f"{FULL} minus {PROBE}"] = lambda level: show_difference(overtaking.differences[level[0]])
    return Report(
        title="From how many labels on does full fine-tuning beat the linear probe?",
        conclusion=conclude(overtaking, found),
        body=[
            markdown_table(columns, [(n,) for n in curves.labels]),
            found.how,
            HOW.format(n=count_of(overtaking.seeds, "seed")),
        ],
        pictures={PICTURE: "Full fine-tuning and the probe"},
        notes=found.notes,
    )


def find_overtaking(curves: LabelCurves) -> Overtaking:
    """Return where full fine-tuning overtakes the probe for good."""
    labels, arms, seeds, scores = curves
    pairs = zip(labels, arms[PROBE], arms[FULL], strict=True)
    differences = {n: full.minus(probe) for n, probe, full in pairs}
    if not seeds:
        return Overtaking(math.nan, math.nan, math.nan, 0, differences)
    gain = scores[FULL] - scores[PROBE]
    bounds = bootstrap(lambda drawn: crossing(labels, gain[:, drawn].mean(1), last=True), len(seeds))
    return Overtaking(crossing(labels, gain.mean(1), last=True), *bounds, len(seeds), differences)


def conclude(overtaking: Overtaking, found: Comparison) -> str:
    """Return the conclusion in one sentence."""
    at, low, high, seeds, differences = overtaking
    labels, n = list(differences), count_of(seeds, "seed")
    span = f"{labels[0]:g} to {labels[-1]:g} labels"
    if seeds < 2:
        return f"Undecided: {n} common to all points of {span} give no interval; run more seeds."
    verdicts = [found.verdict(difference) for difference in differences.values()]
    if math.isinf(at) and not any(verdicts):
        return f"Undecided: at {span}, no paired interval of {FULL} minus {PROBE} on {found.metric} excludes 0."
    if math.isinf(at):
        leader, decided = (PROBE, -1) if at > 0 else (FULL, 1)
        where = "at every number of labels" if at < 0 else "at the largest number of labels"
        return (
            f"No crossing from {span}: {leader} has the better mean {found.metric} {where}; the paired 95 % interval "
            f"excludes 0 at {verdicts.count(decided)} of {len(labels)} numbers of labels ({n})."
        )
    if math.isinf(low) or math.isinf(high):
        bounds = f"{low:.3g} to {high:.3g}".replace("-inf", "below the range").replace("inf", "above the range")
        return (
            f"Undecided: the mean {found.metric} of {FULL} passes that of {PROBE} at about {at:.3g} labels, "
            f"but the 95 % bootstrap interval over {n} reaches from {bounds} (tried: {span})."
        )
    return (
        f"{FULL} overtakes {PROBE} on {found.metric} at about {at:.3g} labels "
        f"(95 % bootstrap interval over {n}: {low:.3g} to {high:.3g})."
    )


def draw(found: Comparison, curves: Mapping[str, Sequence[Arm]], overtaking: Overtaking, path: Path) -> None:
    """Draw both arms on the left and their difference on the right over the number of labels."""
    labels = list(overtaking.differences)
    with picture(path, f"{INTERVAL_BAND} Grey: the crossing with its interval.", 4.6, 2) as (left, right):
        draw_lines(left, labels, curves, (X_LABEL, found.axis_label))
        style = style_of(2) | {"linestyle": "-"}
        means = list(overtaking.differences.values())
        draw_means(right, labels, means, f"{FULL} minus {PROBE}, paired by seed", style)
        right.axhline(0, color=GREY, linewidth=1)
        set_ticks(right, labels, X_LABEL)
        right.set_ylabel(f"difference in {found.metric}")
        if math.isfinite(overtaking.at):
            low, high = max(overtaking.low, labels[0]), min(overtaking.high, labels[-1])
            for ax in (left, right):
                ax.axvspan(low, high, color="#999999", alpha=0.15, linewidth=0)
                ax.axvline(overtaking.at, color="#777777", linestyle=":", linewidth=1.5)

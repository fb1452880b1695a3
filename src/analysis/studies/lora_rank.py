"""``report=lora_rank``: which rank is enough?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ...errors import UserError, listed
from ..analysis import Analysis, Arm
from ..conditions import better, choose, direction, lead, notes_of, rates, results, tuning
from ..plots import INTERVAL_BAND, draw_means, in_words, legend_below, look_of, picture, set_ticks
from ..report import markdown_table, show_count, show_interval
from ..statistics import Interval
from ..study import Report

RANK = "strategy.rank"
PICTURE = "lora_rank.png"


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare every rank with the one that validation finds best.

    Raises:
        UserError: the sweep has fewer than two ranks with a result.
    """
    analysis = choose(table, RANK)
    ranks = {int(rank): arm for (rank,), arm in results(analysis).items()}
    if len(ranks) < 2:
        raise UserError(
            f"report=lora_rank needs at least 2 values of {RANK} with a result; this sweep has {len(ranks)}"
        )
    best = next(iter(ranks))  # by validation
    ranks = dict(sorted(ranks.items()))
    leads = {rank: lead(arm, ranks[best]) for rank, arm in ranks.items() if rank != best}
    elbow = find_elbow(leads, best, analysis.question.higher)
    with picture(folder / PICTURE, f"{INTERVAL_BAND} Ring: the elbow.", 4.4, 2) as axes:
        draw(axes, analysis, ranks, elbow)
    columns = {
        "rank": str,
        "trainable parameters": lambda rank: show_count(ranks[rank].cost("trainable_parameters")),
        ", ".join(analysis.question.tune) or "choice": lambda rank: rates(ranks[rank]),
        analysis.question.metric: lambda rank: show_interval(ranks[rank].test),
        f"minus rank {best}": lambda rank: (
            show_interval(leads[rank], sign=True) + " *" * leads[rank].excludes_zero if rank in leads else "reference"
        ),
    }
    how = (
        f"Rank {best} has the best mean validation loss; the elbow is the smallest rank that is not shown to be worse."
    )
    return Report(
        title="Which rank is enough?",
        conclusion=conclude(ranks, leads, best, elbow, analysis),
        body="\n\n".join([markdown_table(columns, list(ranks)), how, tuning(analysis)]),
        pictures={PICTURE: "What a rank brings, and what it costs"},
        notes=notes_of(analysis, table),
    )


def find_elbow(leads: Mapping[int, Interval], best: int, higher: bool) -> int:
    """Return the smallest rank whose paired difference from the best rank's does not show it to be worse."""
    return min([best, *(rank for rank, difference in leads.items() if better(difference, higher) >= 0)])


def conclude(ranks: Mapping[int, Arm], leads: Mapping[int, Interval], best: int, elbow: int, analysis: Analysis) -> str:
    """Say in one sentence what the numbers carry."""
    metric = in_words(analysis.question.metric)
    n = min(difference.n for difference in leads.values())
    size = f"{ranks[elbow].cost('trainable_parameters'):,.0f} trainable parameters"
    if n < 2:
        return f"Undecided: {n} common seed gives no interval; rank {best} has the best validation loss."
    if not any(difference.excludes_zero for difference in leads.values()):
        return (
            f"Undecided which rank is best: none of {listed(map(str, ranks))} can be told from rank {best} on {metric} "
            f"at {n} seeds, so rank {elbow} ({size}) is the cheapest choice."
        )
    if elbow == best:
        end = ": the range may end too early" if best == max(ranks) else ""
        return f"Rank {best} ({size}) is needed: on {metric} every smaller rank is worse at {n} seeds{end}."
    return (
        f"The elbow is rank {elbow} ({size}): the smallest whose {metric} cannot be told from that of the best, "
        f"rank {best} (paired difference {show_interval(leads[elbow], sign=True)} at {n} seeds)."
    )


def draw(axes: Sequence[Axes], analysis: Analysis, ranks: Mapping[int, Arm], elbow: int) -> None:
    """Draw the metric on the left and the trainable parameters on the right, over the rank."""
    tried = list(ranks)
    sizes = [arm.cost("trainable_parameters") for arm in ranks.values()]
    draw_means(axes[0], tried, [arm.test for arm in ranks.values()], in_words(analysis.question.metric), look_of(0))
    axes[1].plot(tried, sizes, label="trainable parameters", **look_of(1))
    for ax, at in ((axes[0], ranks[elbow].test.mean), (axes[1], ranks[elbow].cost("trainable_parameters"))):
        ax.plot(elbow, at, "o", ms=15, mfc="none", mec="#222222", mew=1.8)
        set_ticks(ax, tried)
        ax.set_xlabel("rank")
    axes[0].set_ylabel(direction(analysis))
    axes[1].set_ylabel("trainable parameters")
    if np.isfinite(sizes).all():
        axes[1].set_ylim(bottom=0)
    legend_below(axes)

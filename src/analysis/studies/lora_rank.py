"""``report=lora_rank``: which rank is enough?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ...errors import UserError, listed
from ..comparison import Arm, Comparison
from ..factors import compare_factors
from ..formatting import count_of, markdown_table, show_count, show_interval
from ..pages import result_columns
from ..plots import INTERVAL_BAND, draw_lines, legend_below, picture, set_ticks, style_of
from ..reports import Report

RANK, SIZE = "strategy.rank", "trainable_parameters"
PICTURE = "lora_rank.png"


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare every rank with the one that has the best validation loss.

    Raises:
        UserError: fewer than two ranks have a result.
    """
    found = compare_factors(table, [RANK])
    if len(found.arms) < 2:
        raise UserError(
            f"report=lora_rank needs at least 2 values of {RANK} with a result; this sweep has {len(found.arms)}"
        )
    best = found.arms[0].label
    found = found.against(best)
    ranks = {int(arm.label): arm for arm in sorted(found.arms, key=lambda arm: int(arm.label))}
    elbow = find_elbow(ranks, found)
    with picture(folder / PICTURE, f"{INTERVAL_BAND} Ring: the elbow.", 4.4, 2) as axes:
        draw(axes, found, ranks, elbow)
    columns = {**result_columns(found, "rank"), "trainable parameters": lambda arm: show_count(arm.cost(SIZE))}
    how = (
        f"Rank {best} has the best mean validation loss. The elbow is the smallest rank that is not shown to be worse."
    )
    return Report(
        title="Which rank is enough?",
        conclusion=conclude(ranks, int(best), elbow, found),
        body=[markdown_table(columns, list(ranks.values())), how, found.how],
        pictures={PICTURE: "Metric and size over the rank"},
        notes=found.notes,
    )


def find_elbow(ranks: Mapping[int, Arm], found: Comparison) -> int:
    """Return the smallest rank that is not shown to be worse than the reference, the best rank."""
    return min(rank for rank, arm in ranks.items() if found.verdict(arm.difference) >= 0)


def conclude(ranks: Mapping[int, Arm], best: int, elbow: int, found: Comparison) -> str:
    """Return the conclusion in one sentence."""
    differences = [arm.difference for arm in ranks.values() if arm.difference is not None]
    n = min(difference.n for difference in differences)
    size = f"{ranks[elbow].cost(SIZE):,.0f} trainable parameters"
    if n < 2:
        return f"Undecided: {count_of(n, 'common seed')} give no interval; rank {best} has the best validation loss."
    if not any(difference.excludes_zero for difference in differences):
        return (
            f"Undecided which rank is best: on {found.metric} none of {listed(map(str, ranks))} is shown to differ "
            f"from rank {best} at {n} seeds, so rank {elbow} ({size}) is the cheapest choice."
        )
    if elbow == best:
        end = ", the largest that was tried" if best == max(ranks) else ""
        return f"Rank {best} ({size}) is needed{end}: every smaller rank has a worse {found.metric} at {n} seeds."
    difference = ranks[elbow].minus(ranks[best])
    return (
        f"The elbow is rank {elbow} ({size}), the smallest whose {found.metric} is not shown to be worse than that of "
        f"rank {best} (paired difference {show_interval(difference, sign=True)} at {n} seeds)."
    )


def draw(axes: Sequence[Axes], found: Comparison, ranks: Mapping[int, Arm], elbow: int) -> None:
    """Draw the metric on the left and the number of trainable parameters on the right over the rank."""
    sizes = [arm.cost(SIZE) for arm in ranks.values()]
    draw_lines(axes[0], list(ranks), {found.metric: list(ranks.values())}, ("rank", found.axis_label))
    axes[1].plot(list(ranks), sizes, label="trainable parameters", **style_of(1))
    for ax, at in ((axes[0], ranks[elbow].test.mean), (axes[1], ranks[elbow].cost(SIZE))):
        ax.plot(elbow, at, "o", ms=15, mfc="none", mec="#222222", mew=1.8)
    set_ticks(axes[1], list(ranks), "rank")
    axes[1].set_ylabel("trainable parameters")
    if np.isfinite(sizes).all():
        axes[1].set_ylim(bottom=0)
    legend_below(axes)

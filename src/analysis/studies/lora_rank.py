"""``report=lora_rank``: which rank is enough?"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from ...errors import UserError, listed
from ..comparison import Arm, Comparison
from ..factors import compare_factors
from ..formatting import count_of, markdown_table, show_count, show_interval
from ..pages import result_columns
from ..plots import INTERVAL_BAND, draw_lines, picture, set_ticks, style_of
from ..reports import Report

RANK, SIZE = "strategy.rank", "trainable_parameters"
PICTURE = "lora_rank.png"


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare every rank with the one that has the best validation loss."""
    found = compare_factors(table, [RANK])
    if len(found.arms) < 2:
        raise UserError(
            f"report=lora_rank needs at least 2 values of {RANK} with a result; this sweep has {len(found.arms)}"
        )
    best = found.arms[0]
    found = found.against(best.label)
    arms = sorted(found.arms, key=lambda arm: int(arm.label))
    elbow = next(arm for arm in arms if found.verdict(arm.difference) >= 0)
    draw(found, arms, elbow, folder / PICTURE)
    columns = {**result_columns(found, "rank"), "trainable parameters": lambda arm: show_count(arm.cost(SIZE))}
    how = f"Rank {best.label} has the best mean validation loss. The elbow is the smallest rank that is not shown to be"
    return Report(
        title="Which rank is enough?",
        conclusion=conclude(found, arms, elbow, best),
        body=[markdown_table(columns, arms), f"{how} worse.", found.how],
        pictures={PICTURE: "Metric and size over the rank"},
        notes=found.notes,
    )


def conclude(found: Comparison, arms: Sequence[Arm], elbow: Arm, best: Arm) -> str:
    """Return the conclusion in one sentence; ``arms`` are in the order of their rank."""
    differences = [arm.difference for arm in arms if arm.difference is not None]
    n = min(difference.n for difference in differences)
    size = f"{elbow.cost(SIZE):,.0f} trainable parameters"
    if n < 2:
        few = count_of(n, "common seed")
        return f"Undecided: {few} give no interval; rank {best.label} has the best validation loss."
    if not any(difference.excludes_zero for difference in differences):
        return (
            f"Undecided which rank is best: on {found.metric} none of {listed(arm.label for arm in arms)} is shown to "
            f"differ from rank {best.label} at {n} seeds, so rank {elbow.label} ({size}) is the cheapest choice."
        )
    if elbow.label == best.label:
        end = ", the largest that was tried" if best.label == arms[-1].label else ""
        return f"Rank {best.label} ({size}) is needed{end}: every smaller rank has a worse {found.metric} at {n} seeds."
    difference = show_interval(elbow.minus(best), sign=True)
    return (
        f"The elbow is rank {elbow.label} ({size}), the smallest whose {found.metric} is not shown to be worse than "
        f"that of rank {best.label} (paired difference {difference} at {n} seeds)."
    )


def draw(found: Comparison, arms: Sequence[Arm], elbow: Arm, path: Path) -> None:
    """Draw the metric on the left and the number of trainable parameters on the right over the rank."""
    ranks, sizes = [int(arm.label) for arm in arms], [arm.cost(SIZE) for arm in arms]
    with picture(path, f"{INTERVAL_BAND} Ring: the elbow.", 4.4, 2) as (left, right):
        draw_lines(left, ranks, {found.metric: arms}, ("rank", found.axis_label))
        right.plot(ranks, sizes, label="trainable parameters", **style_of(1))
        for ax, at in ((left, elbow.test.mean), (right, elbow.cost(SIZE))):
            ax.plot(int(elbow.label), at, "o", ms=15, mfc="none", mec="#222222", mew=1.8)
        set_ticks(right, ranks, "rank")
        right.set_ylabel("trainable parameters")
        if np.isfinite(sizes).all():
            right.set_ylim(bottom=0)

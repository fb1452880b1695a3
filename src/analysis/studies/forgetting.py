"""``report=forgetting``: how well is the target task learned, and how much of the source task is forgotten?"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from ...errors import UserError
from ..comparison import Arm
from ..factors import STRATEGY, compare_factors, select_by_both_tasks, varying_factors
from ..formatting import markdown_table, show_difference, show_interval
from ..plots import GREY, draw_tradeoff, picture
from ..reports import Report
from ..statistics import ConfidenceInterval, paired_difference

PICTURE = "forgetting.png"
TARGET, AFTER, BEFORE = "test_accuracy", "source_after_accuracy", "source_test_accuracy"
VAL_TARGET, VAL_AFTER = "val_accuracy", "source_val_after_accuracy"
HOW = (
    "Chosen by {how}, which also orders the arms; ± is the 95 % Student-t interval over seeds. The change is paired by "
    "seed, and \\* marks an interval that excludes 0. Front: no other arm is better at both tasks; judged by {front}."
)
BY_BOTH = ("the mean validation accuracy of both tasks", "validation means")
BY_TARGET = (
    "the target's validation loss",
    "test means, as a description only, because the source has no validation rows",
)


class Outcome(NamedTuple):
    """The test accuracies of the two tasks after fine-tuning with one arm."""

    arm: Arm
    target: ConfidenceInterval
    after: ConfidenceInterval
    change: ConfidenceInterval  # of the source's accuracy, paired by seed


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare strategies, or retention methods, by what they learn and what they forget.

    Rates and strengths, and the arms that the conclusion names, are chosen by validation accuracy on both tasks, or by
    the validation loss of the target where the source has no validation rows.
    """
    if AFTER not in table or table[AFTER].notna().sum() == 0:
        raise UserError("report=forgetting needs jobs whose source task is a classification with a test part")
    table = merge_zero_strength(table)
    both = VAL_AFTER in table and bool(table[VAL_AFTER].notna().all())
    found = compare_factors(select_by_both_tasks(table) if both else table, varying_factors(table, STRATEGY))
    rows = {arm.label: outcome_of(arm) for arm in found.arms}
    judges = (VAL_TARGET, VAL_AFTER) if both else (TARGET, AFTER)
    points = {arm.label: tuple(arm.mean_of(name).mean for name in judges) for arm in found.arms}
    front = pareto(points)
    before = float(table[BEFORE].mean())
    with picture(folder / PICTURE, "Marker: mean over seeds. Bars: 95 % intervals. Line: the Pareto front.", 4.6) as (
        ax,
    ):
        line = sorted((rows[name].target.mean, rows[name].after.mean) for name in front)
        ax.plot(*zip(*line, strict=True), color="#999999", linewidth=1, zorder=0)
        ax.axhline(before, color=GREY, linewidth=1, linestyle=":", label="source before fine-tuning")
        labels = ("target test accuracy", "source test accuracy after fine-tuning")
        draw_tradeoff(ax, {name: (row.target, row.after) for name, row in rows.items()}, labels)
    columns = {
        "arm": lambda row: row.arm.label + (" (front)" if row.arm.label in front else ""),
        "chosen": lambda row: row.arm.choice,
        "target test accuracy": lambda row: show_interval(row.target),
        "source after": lambda row: show_interval(row.after),
        "change of the source": lambda row: show_difference(row.change),
        "mean of both": lambda row: f"{(row.target.mean + row.after.mean) / 2:.3f}",
    }
    how, means = BY_BOTH if both else BY_TARGET
    learns_best = max(points, key=lambda name: points[name][0]) if both else found.labels[0]
    return Report(
        title="How well is the target learned, and how much of the source is forgotten?",
        conclusion=conclude(rows[learns_best], rows[found.labels[0]] if both else None, before),
        body=[markdown_table(columns, list(rows.values())), HOW.format(how=how, front=means)],
        pictures={PICTURE: "Target and source"},
        notes=found.notes,
    )


def outcome_of(arm: Arm) -> Outcome:
    """Return the accuracies of both tasks for an arm."""
    change = paired_difference(arm.by_seed(AFTER), arm.by_seed(BEFORE))
    return Outcome(arm, arm.mean_of(TARGET), arm.mean_of(AFTER), change)


def merge_zero_strength(table: pd.DataFrame) -> pd.DataFrame:
    """Return the jobs with those of strength 0 relabelled as no retention, and kept once instead of per method."""
    strength = "retention.strength"
    if "retention" not in table or strength not in table:
        return table
    idle = table[strength] == 0
    first = table["retention"].where(idle).groupby(table[STRATEGY]).transform("first")
    kept: Any = table.assign(retention=table["retention"].mask(idle, "none"))
    return kept[~idle | (table["retention"] == first)]


def pareto(points: Mapping[str, tuple[float, ...]]) -> set[str]:
    """Return the names of the points that no other point matches or beats in every number and beats in one."""
    others = np.array(list(points.values()))
    return {name for name, own in points.items() if not ((others >= own).all(1) & (others > own).any(1)).any()}


def conclude(learns_best: Outcome, keeps_best: Outcome | None, before: float) -> str:
    """Return the test results of the arms that validation chose; ``keeps_best`` is None if it could not choose one."""
    arm, target, _, change = learns_best
    text = f"By validation, {arm.label} learns the target best (test accuracy {target.mean:.3f})"
    if change.excludes_zero and change.mean < 0:
        text += f" and changes the source by {show_interval(change, sign=True)} from {before:.3f}"
    else:
        text += "; a loss on the source is not shown for it"
    if keeps_best is None:
        return f"{text}. The source has no validation rows, so no arm is chosen for both tasks together."
    tests = f"test accuracies {keeps_best.target.mean:.3f} and {keeps_best.after.mean:.3f}"
    return f"{text}; {keeps_best.arm.label} is best on both tasks together ({tests})."

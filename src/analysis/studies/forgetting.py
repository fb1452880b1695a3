"""``report=forgetting``: what is learned of the target task, against what is left of the source task."""

# pandas' own annotations give indexing a union of everything it might return, which no caller can narrow.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import UserError
from ..conditions import by_both_tasks, choose, notes_of, rates, results, ways
from ..plots import look_of, picture
from ..report import markdown_table, show_interval
from ..statistics import Interval, mean_interval, paired_difference
from ..study import Report

PICTURE = "forgetting.png"
AFTER, BEFORE = "source_after_accuracy", "source_test_accuracy"

Rows = dict[str, tuple[Interval, Interval, Interval, str]]  # target, source after, its change, what was chosen


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare strategies, or methods of retention, by what they learn and what they forget.

    What is tuned (rate, strength) is chosen by the target's validation loss; where the source has validation rows, by
    both tasks.

    Raises:
        UserError: the jobs are no classification whose source was measured after fine-tuning.
    """
    if AFTER not in table or table[AFTER].notna().sum() == 0:
        raise UserError("report=forgetting needs jobs whose source task is a classification with a test part")
    table = with_none(table)
    both = "source_val_after_accuracy" in table and table["source_val_after_accuracy"].notna().all()
    if both:
        table = by_both_tasks(table)
    analysis = choose(table, *ways(table, "strategy"))
    arms = results(analysis)
    rows: Rows = {}
    for key, arm in arms.items():
        jobs: Any = arm.jobs
        after = dict(zip(jobs["seed"], jobs[AFTER], strict=True))
        before = dict(zip(jobs["seed"], jobs[BEFORE], strict=True))
        target = mean_interval(list(jobs["test_accuracy"]))
        rows[" ".join(map(str, key))] = (
            target,
            mean_interval(after.values()),
            paired_difference(after, before),
            rates(arm),
        )
    front = pareto({name: (row[0].mean, row[1].mean) for name, row in rows.items()})
    before_all = float(table[BEFORE].mean())
    draw(rows, front, before_all, folder / PICTURE)
    columns = {
        "arm": lambda name: name + (" (front)" if name in front else ""),
        "chosen": lambda name: rows[name][3],
        "target test accuracy": lambda name: show_interval(rows[name][0]),
        "source after": lambda name: show_interval(rows[name][1]),
        "change of the source": lambda name: (
            show_interval(rows[name][2], sign=True) + " *" * rows[name][2].excludes_zero
        ),
        "mean of both": lambda name: f"{(rows[name][0].mean + rows[name][1].mean) / 2:.3f}",
    }
    how = "the mean validation accuracy of both tasks" if both else "the target's validation loss"
    return Report(
        title="What is learned, and what is left of the source task?",
        conclusion=conclude(rows, front, before_all),
        body="\n\n".join(
            [
                markdown_table(columns, list(rows)),
                f"Chosen by {how}; ± is the 95 % Student-t interval over seeds, the change is paired by seed and \\* "
                "says that its interval excludes 0. Front: no other arm is better at both (by the means).",
            ]
        ),
        pictures={PICTURE: "Target against source"},
        notes=notes_of(analysis, table),
    )


def with_none(table: pd.DataFrame) -> pd.DataFrame:
    """Return the jobs with those of strength 0 as what they are, fine-tuning without retention: once, not by method."""
    strength = "retention.strength"
    if "retention" not in table or strength not in table:
        return table
    idle = table[strength] == 0
    first = table["retention"].where(idle).groupby(table["strategy"]).transform("first")
    once = ~idle | (table["retention"] == first)
    kept: Any = table.assign(retention=table["retention"].mask(idle, "none"))[once]
    return kept


def pareto(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Return the names of the points that no other one matches or beats in both numbers, and beats in one."""
    return {
        name
        for name, own in points.items()
        if not any(np.all(np.array(other) >= own) and np.any(np.array(other) > own) for other in points.values())
    }


def draw(rows: Rows, front: set[str], before: float, path: Path) -> None:
    """Draw each arm with its two intervals, the front joined by a line."""
    with picture(path, "Marker: mean over seeds. Bars: 95 % intervals. Line: the Pareto front.", 4.6) as axes:
        ax = axes[0]
        for place, (name, (target, source, _, _)) in enumerate(rows.items()):
            look = look_of(place)
            ax.errorbar(
                target.mean, source.mean, xerr=target.half, yerr=source.half, color=look["color"],
                marker=look["marker"], label=name, capsize=3, linestyle="none",
            )  # fmt: skip
        line = sorted((rows[name][0].mean, rows[name][1].mean) for name in front)
        ax.plot(*zip(*line, strict=True), color="#999999", linewidth=1, zorder=0)
        ax.axhline(before, color="#555555", linewidth=1, linestyle=":", label="source before fine-tuning")
        ax.set_xlabel("target test accuracy")
        ax.set_ylabel("source test accuracy after fine-tuning")
        ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))


def conclude(rows: Rows, front: set[str], before: float) -> str:
    """Say in one sentence what the numbers carry."""
    best = max(rows, key=lambda name: rows[name][0].mean)
    kept = max(rows, key=lambda name: rows[name][0].mean + rows[name][1].mean)
    loss = rows[best][2]
    words = f"{best} has the highest target accuracy ({rows[best][0].mean:.3f})"
    if loss.excludes_zero and loss.mean < 0:
        words += f" and costs the source {show_interval(loss, sign=True)} of {before:.3f}"
    else:
        words += ", and no loss of the source is shown for it"
    return f"{words}; the best mean of both tasks has {kept} ({rows[kept][0].mean:.3f} and {rows[kept][1].mean:.3f})."

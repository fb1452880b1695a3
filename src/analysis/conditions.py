"""Arms under conditions: what the studies of ``src/results/studies`` have in common.

A condition is a value of a column that is compared across, such as the number of labels. Validation chooses the
learning rate of every arm anew under every condition; test reports it there.
"""

# pandas' own annotations give indexing a union of everything it might return, which no caller can narrow.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..errors import UserError, listed
from .analysis import Analysis, Arm, analyze, count_of, default_arms, edge_notes, make_question, show, show_choice
from .export import varies
from .plots import in_words
from .statistics import Interval, paired_difference

SEED = "seed"
NO_CHOICE = ("data",)  # another task has another validation set
HOW = (
    "For each arm under each condition {tuned} is chosen by its mean validation loss; {metric} is reported there. "
    "± is the 95 % Student-t interval over seeds, differences are paired by seed, and \\* says that an interval "
    "excludes 0 (not corrected for the number of comparisons)."
)


def choose(table: pd.DataFrame, *columns: str) -> Analysis:
    """Tune every combination of the columns' values on validation.

    Everything else that varies within an arm is tuned, apart from the seed, by the mean ``val_loss`` over seeds. What
    is reported is ``test_accuracy``, or ``test_loss`` where the jobs have none.

    Raises:
        UserError: a column is missing, or the jobs differ in their data in a way that is not compared.
    """
    for name in columns:
        if name not in table:
            raise UserError(f"the jobs of this sweep have no '{name}', which the report compares")
    kept = table[table[list(columns)].notna().all(axis=1)]
    if kept.empty:
        raise UserError(f"no job of this sweep has {' and '.join(columns)}, which the report compares")
    groups = kept.groupby(list(columns))
    open_to_choice = [name for name in default_arms(kept, columns, SEED) if name not in columns and varies(kept[name])]
    # What only tells the arms apart (a setting that one strategy has and another has not) is nobody's choice.
    tuned = [name for name in open_to_choice if groups[name].nunique(dropna=False).max() > 1]
    for name in tuned:
        if name.split(".")[0] in NO_CHOICE:
            raise UserError(f"the jobs of this sweep differ in '{name}' too, which no validation can choose")
    return analyze(kept, make_question(kept, reported_metric(kept), "val_loss", tuned, columns, SEED))


def by_both_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """Return the jobs with the mean validation accuracy of both tasks in the place of the validation loss, negated.

    What is to be learned without forgetting is chosen by both: the target alone would choose no retention, the source
    alone no learning.
    """
    return table.assign(val_loss=-(table["source_val_after_accuracy"] + table["val_accuracy"]) / 2)


def ways(table: pd.DataFrame, only: str) -> list[str]:
    """Return which of strategy and retention the jobs differ in; ``only`` where it is neither."""
    return [name for name in ("strategy", "retention") if name in table and table[name].nunique() > 1] or [only]


def reported_metric(table: pd.DataFrame) -> str:
    """Return ``test_accuracy`` where there is one, else ``test_loss``."""
    return "test_accuracy" if "test_accuracy" in table and table["test_accuracy"].notna().any() else "test_loss"


def results(analysis: Analysis) -> dict[tuple[Any, ...], Arm]:
    """Return the arms that have a result, by the values of the columns that they were told apart by.

    The best mean validation loss comes first.
    """
    columns = list(analysis.question.arms)
    usable = [arm for arm in analysis.arms if arm.chosen is not None]
    return {tuple(arm.jobs[columns].iloc[0]): arm for arm in usable}


def require_arms(table: pd.DataFrame, names: Sequence[str]) -> None:
    """Check that a sweep has run the strategies that a report is about.

    Raises:
        UserError: it has not; the message names the one that is missing and those there are.
    """
    there = sorted(set(table["strategy"].dropna())) if "strategy" in table else []
    for name in names:
        if name not in there:
            raise UserError(f"the report compares strategy={name}, which is not in this sweep; it has {listed(there)}")


def common_seeds(arms: Iterable[Arm]) -> list[Any]:
    """Return the seeds at which every arm has a finite reported metric."""
    sets = [{seed for seed, value in arm.values.items() if math.isfinite(value)} for arm in arms]
    return sorted(set.intersection(*sets)) if sets else []


def scores(arms: Sequence[Arm], seeds: Sequence[Any], higher: bool) -> Float[np.ndarray, "arms seeds"]:
    """Return the reported metric, signed so that more is better."""
    values = np.array([[arm.values[seed] for seed in seeds] for arm in arms], dtype=float)
    return values if higher else -values


def lead(first: Arm, second: Arm) -> Interval:
    """Return the reported metric of the first arm minus the second's, paired by seed."""
    return paired_difference(first.values, second.values)


def better(difference: Interval, higher: bool) -> int:
    """Tell what a difference decides: 1 for the first arm, -1 for the second, 0 where its interval holds 0."""
    if not difference.excludes_zero:
        return 0
    return 1 if (difference.mean > 0) == higher else -1


def tuning(analysis: Analysis) -> str:
    """Say how the table of a report was made."""
    tuned = ", ".join(analysis.question.tune) or "nothing"
    return HOW.format(tuned=tuned, metric=in_words(analysis.question.metric))


def direction(analysis: Analysis) -> str:
    """Write an axis' label for the reported metric."""
    good = "higher" if analysis.question.higher else "lower"
    unit = "share of rows" if analysis.question.metric.endswith("accuracy") else "loss"
    return f"{in_words(analysis.question.metric)} ({unit})\n{good} is better"


def notes_of(analysis: Analysis, table: pd.DataFrame) -> list[str]:
    """Return an analysis' notes: those about the edge of the grid as one, and one about jobs without a condition."""
    edges = {warn_once: arm for arm in analysis.arms for warn_once in edge_notes(arm, analysis.points)}
    notes = [warn_once for warn_once in analysis.notes if warn_once not in edges]
    at_edge = {arm.label: f"{arm.label} ({show_choice(edge_values(arm))})" for arm in edges.values()}
    if at_edge:
        notes.append(
            f"Chosen at the edge of the grid, so a wider one may do better: {listed(at_edge.values(), limit=5)}."
        )
    missing = int(table[list(analysis.question.arms)].isna().any(axis=1).sum())
    if missing:
        notes.append(f"{count_of(missing, 'job')} without {' or '.join(analysis.question.arms)} left out.")
    return notes


def edge_values(arm: Arm) -> dict[str, Any]:
    """Return the chosen values that lie at an edge of their grid."""
    return {name: (arm.chosen or {})[name] for name in arm.edges}


def finetuning_rows(history: pd.DataFrame | None, arm: Arm) -> pd.DataFrame:
    """Return the logged rows of fine-tuning of an arm's jobs, each with its ``_seed``; none without a history."""
    if history is None:
        return pd.DataFrame(columns=["step", "_seed"])
    jobs = arm.jobs[["job", "job_id"]].assign(_seed=arm.jobs[SEED])  # the history has a seed only where it varies
    return history[history["stage"] == "finetune"].merge(jobs, on=["job", "job_id"])


def rates(arm: Arm) -> str:
    """Write an arm's choice for a cell of a table."""
    return ", ".join(show(value) for value in (arm.chosen or {}).values()) or "-"


def seeds_word(seeds: Sequence[Any]) -> str:
    """Write a number of seeds."""
    return count_of(len(seeds), "seed")

"""Compare the levels of factors in a sweep: what the studies in ``src/analysis/studies`` share.

The arms (strategies, say) are compared within each level of other columns (the number of labels, say). For each arm at
each level, the learning rate is chosen on validation data and the result is reported on test data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from jaxtyping import Float

from ..errors import UserError, listed
from .comparison import Arm, Comparison, default_factors, make_spec, tune_arms
from .export import varies
from .formatting import count_of, show

SEED, STRATEGY, LABELS = "seed", "strategy", "data.train_rows"
X_LABEL = "labelled rows to fine-tune on"
NOT_TUNABLE = ("data",)  # another task has another validation set


def compare_factors(table: pd.DataFrame, factors: Sequence[str], levels: Sequence[str] = ()) -> Comparison:
    """Compare the values of ``factors`` within each combination of values of ``levels``.

    Every other column that varies within an arm, except the seed, is tuned by the mean ``val_loss`` over seeds. The
    comparison has the arms with a result.

    Raises:
        UserError: a column is missing, or the jobs differ in their data in a column that is not compared.
    """
    columns = [*factors, *levels]
    for name in columns:
        if name not in table:
            raise UserError(f"the jobs of this sweep have no '{name}', which the report compares")
    kept = table[table[columns].notna().all(axis=1)]
    if kept.empty:
        raise UserError(f"no job of this sweep has {' and '.join(columns)}, which the report compares")
    groups = kept.groupby(columns)
    candidates = [name for name in default_factors(kept, columns, SEED) if name not in columns and varies(kept[name])]
    # A setting that only distinguishes the arms, such as one that a single strategy has, is not tuned.
    tuned = [name for name in candidates if groups[name].nunique(dropna=False).max() > 1]
    for name in tuned:
        if name.split(".")[0] in NOT_TUNABLE:
            raise UserError(f"the jobs of this sweep differ in '{name}' too, which validation cannot choose")
    found = tune_arms(kept, make_spec(kept, select="val_loss", tune=tuned, factors=columns, pair=SEED))
    shown = [name for name in levels if varies(kept[name])] or list(levels)

    def placed(arm: Arm) -> Arm:
        job = arm.jobs.iloc[0]
        label = " ".join(show(job[name]) for name in factors)
        under = ", ".join(level_name(name, job[name]) for name in shown)
        return replace(arm, label=label, level=tuple(job[name] for name in levels), under=under)

    arms = [placed(arm) for arm in found.arms if arm.chosen is not None]
    notes = list(found.notes)
    if missing := len(table) - len(kept):
        notes.append(f"{count_of(missing, 'job')} without {' or '.join(columns)} left out.")
    return replace(found, arms=arms, notes=notes)


def level_name(column: str, value: Any) -> str:
    """Write the value of a level: ``full``, ``64 labels``, ``similarity 0.3``."""
    if isinstance(value, str):
        return value
    return f"{value:g} labels" if column == LABELS else f"{column.split('.')[-1]} {show(value)}"


def select_by_both_tasks(table: pd.DataFrame) -> pd.DataFrame:
    """Return the jobs with ``val_loss`` replaced by the negative mean validation accuracy of both tasks.

    Chosen by the target task alone, the best strength of a retention method is 0; by the source task alone, the best
    learning rate is 0.
    """
    return table.assign(val_loss=-(table["source_val_after_accuracy"] + table["val_accuracy"]) / 2)


def varying_factors(table: pd.DataFrame, default: str) -> list[str]:
    """Return which of strategy and retention vary in a sweep, or ``default`` if neither does."""
    return [name for name in (STRATEGY, "retention") if name in table and table[name].nunique() > 1] or [default]


def require_strategies(table: pd.DataFrame, names: Sequence[str]) -> None:
    """Check that a sweep contains strategies; a :class:`UserError` names a missing one and the existing ones."""
    there = sorted(set(table[STRATEGY].dropna())) if STRATEGY in table else []
    for name in names:
        if name not in there:
            raise UserError(f"the report compares strategy={name}, which is not in this sweep; it has {listed(there)}")


class LabelCurves(NamedTuple):
    """Strategies over the numbers of labels at which all of them have a result."""

    labels: list[float]
    arms: dict[str, list[Arm]]
    seeds: list[Any]  # at which every arm has a finite reported metric
    scores: dict[str, Float[np.ndarray, "labels seeds"]]  # the reported metric, negated where lower is better


def curves_over_labels(found: Comparison, names: Sequence[str], report: str) -> LabelCurves:
    """Return the curves of strategies; a :class:`UserError` names fewer than two common numbers of labels, or names."""
    levels = [level for level in found.levels if found.at(*level).keys() >= set(names)]
    if len(levels) < 2 or len(names) < 2:
        raise UserError(
            f"report={report} needs at least 2 values of {LABELS} at which 2 or more strategies have a result; "
            f"this sweep has {len(levels)} for {listed(names)}"
        )
    arms = {name: [found.at(*level)[name] for level in levels] for name in names}
    seeds = common_seeds(arm for curve in arms.values() for arm in curve)
    sign = 1 if found.spec.higher else -1
    values = {
        name: sign * np.array([[arm.values[seed] for seed in seeds] for arm in own]) for name, own in arms.items()
    }
    return LabelCurves([n for (n,) in levels], arms, seeds, values)


def common_seeds(arms: Iterable[Arm]) -> list[Any]:
    """Return the seeds at which every arm has a finite reported metric."""
    sets = [{seed for seed, value in arm.values.items() if math.isfinite(value)} for arm in arms]
    return sorted(set.intersection(*sets)) if sets else []


def finetuning_rows(history: pd.DataFrame | None, arm: Arm) -> pd.DataFrame:
    """Return the logged rows of fine-tuning of an arm's jobs with their ``_seed``; none without a history."""
    if history is None:
        return pd.DataFrame(columns=["step", "_seed"])
    jobs = arm.jobs[["job", "job_id"]].assign(_seed=arm.jobs[SEED])  # the history has a seed only if it varies
    return history[history["stage"] == "finetune"].merge(jobs, on=["job", "job_id"])

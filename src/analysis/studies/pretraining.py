"""``report=pretraining``: which method of pre-training, or which of its settings, gives the better target task?"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from ...errors import UserError, listed
from ..comparison import Comparison, config_columns, distinguishing, is_function_of, label_arms
from ..export import varies
from ..factors import LABELS, SEED, STRATEGY, compare_factors
from ..formatting import in_words, markdown_table, show_interval, show_mean
from ..pages import result_columns
from ..plots import plot_arms
from ..reports import Report

FACTOR = "pretraining"  # the column with each job's label
SETTINGS = ("pretrain_steps", "batch_size")  # compared like those under `pretrain`
PICTURE = "pretraining.png"
# Metrics of pre-training itself on the source's test rows.
REACHED = ("accuracy", "pair_accuracy", "masked_accuracy", "perplexity", "knn", "probe", "rankme")
MEMORY, DEVIATION = "pretrain_peak_bytes", "deviation of its loss"
SHARED = "batch_size applies to fine-tuning too, so a difference need not come from pre-training alone."


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare the swept settings of pre-training with the first of them under each strategy and number of labels.

    The first is ``supervised``, or the first in alphabetical order, and of numbers the smallest.
    """
    compared = swept_settings(table)
    labelled = with_deviation(with_labels(table, compared), history)
    levels = [name for name in (STRATEGY, LABELS) if name in table and table[name].nunique() > 1]
    found = compare_factors(labelled, [FACTOR], levels)
    order = [label for label in in_order(table, compared) if label in found.labels]
    if len(order) < 2:
        raise UserError(
            f"report=pretraining needs at least 2 settings of pre-training with a result; this sweep has {len(order)}"
        )
    best = found.arms[0]
    found = found.against(order[0])
    found = replace(found, arms=sorted(found.arms, key=lambda arm: (order.index(arm.label), arm.level)))
    plot_arms(found, folder / PICTURE)
    where = f" with {best.under}" if best.under else ""
    by_level = sorted(found.arms, key=lambda arm: arm.level)
    body = [markdown_table(result_columns(found, "pre-training"), by_level)]
    body += [f"By validation, {best.label}{where} is best. {found.how}"]
    if len(found.levels) > 1:
        body += [f"{found.metric.capitalize()} side by side; \\* as above:", markdown_table(matrix(found), order)]
    if reached := source_columns(labelled):
        body += ["Pre-training itself, on the source's test rows (the deviation is over the last half of its rows):"]
        body += [markdown_table({"pre-training": str} | reached, order)]
    return Report(
        title=title_of(compared),
        conclusion=replace(found, arms=by_level).summarize(),
        body=body,
        pictures={PICTURE: "The target task after each pre-training"},
        notes=[*found.notes, *([SHARED] if "batch_size" in compared else [])],
    )


def swept_settings(table: pd.DataFrame) -> list[str]:
    """Return the columns that distinguish the pre-trainings, ``pretrain`` first, without redundant ones."""
    names = [name for name in config_columns(table) if name.startswith("pretrain.")]
    known = [name for name in ("pretrain", *names, *SETTINGS) if name in table and varies(table[name])]
    by_seed = [name for name in known if SEED in table and is_function_of(table[name], table[SEED])]
    chosen = distinguishing(table, [name for name in known if name not in by_seed])
    if not chosen:
        allowed = listed(["pretrain=...", "pretrain.<setting>=...", *(f"{name}=..." for name in SETTINGS)])
        raise UserError(f"report=pretraining compares settings of pre-training, which do not vary; sweep {allowed}")
    return chosen


def with_labels(table: pd.DataFrame, compared: Sequence[str]) -> pd.DataFrame:
    """Return the jobs with one configuration column of labels in place of the compared columns."""
    kept = table.drop(columns=list(compared))
    kept.insert(list(kept).index("objective"), FACTOR, label_arms(table, compared))
    return kept


def with_deviation(table: pd.DataFrame, history: pd.DataFrame | None) -> pd.DataFrame:
    """Return the jobs with the standard deviation of the pre-training loss over the last half of its logged rows."""
    if history is None or not {"stage", "loss", "step"} <= set(history):
        return table
    rows = history[(history["stage"] == "pretrain") & history["loss"].notna()]
    late = rows[rows["step"] > rows.groupby("job")["step"].transform("max") / 2]
    return table.assign(**{DEVIATION: table["job"].map(late.groupby("job")["loss"].std())}) if len(rows) else table


def in_order(table: pd.DataFrame, compared: Sequence[str]) -> list[str]:
    """Return the labels sorted by their values, ``supervised`` first."""
    labelled = table[list(compared)].assign(_label=label_arms(table, compared)).drop_duplicates("_label")
    ordered = labelled.sort_values(list(compared), key=lambda column: column.replace("supervised", ""))
    return list(ordered["_label"])


def title_of(compared: Sequence[str]) -> str:
    """Return the question."""
    if compared[0] == "pretrain":
        return "Which pre-training gives the better target task?"
    parts: dict[str, list[str]] = {}  # settings by the node that they belong to, such as both ends of a temperature
    for name in compared:
        node, _, own = name.removeprefix("pretrain.").rpartition(".")
        parts.setdefault(node or own, []).extend([in_words(own)] if node else [])
    named = (in_words(node) + (f" ({' and '.join(own)})" if own else "") for node, own in parts.items())
    return f"Which {' and '.join(named)} of pre-training gives the better target task?"


def matrix(found: Comparison) -> dict[str, Callable[[str], str]]:
    """Return the columns of a table with a row for each pre-training and a column for each level."""

    def cell(label: str, level: tuple) -> str:
        arm = found.at(*level).get(label)
        star = " *" * (arm is not None and arm.difference is not None and arm.difference.excludes_zero)
        return "-" if arm is None else show_interval(arm.test) + star

    names = {arm.level: arm.under for arm in found.arms}
    return {"pre-training": str, **{names[level]: partial(cell, level=level) for level in found.levels}}


def source_columns(table: pd.DataFrame) -> dict[str, Callable[[str], str]]:
    """Return the columns of the metrics of pre-training itself, with one value for each seed."""
    found: dict[str, Callable[[str], str]] = {}
    for name, column in [*((name, f"source_test_{name}") for name in REACHED), (DEVIATION, DEVIATION)]:
        if column in table and table[column].notna().any() and SEED in table:
            by_seed = table.groupby([FACTOR, SEED])[column].first()
            found[name] = lambda label, by_seed=by_seed: show_mean(by_seed[label].dropna())
    if MEMORY in table and table[MEMORY].notna().any():
        most: dict[str, float] = table.groupby(FACTOR)[MEMORY].max().to_dict()
        found["peak MB of an update"] = lambda label: "-" if math.isnan(most[label]) else f"{most[label] / 1e6:.0f}"
    return found

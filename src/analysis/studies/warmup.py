"""``report=warmup``: what does a warm-up change for each strategy under the same decay?"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ...errors import UserError, listed
from ..comparison import Arm, Comparison
from ..factors import STRATEGY, compare_factors, finetuning_rows
from ..formatting import in_words, markdown_table, show_difference, show_interval
from ..pages import result_columns
from ..plots import DOTS, IntervalRow, draw_rows, interval_rows, legend_below, picture
from ..reports import Report
from ..statistics import mean_interval, paired_difference

WARMUP, NONE = "schedule.warmup", "no warm-up"
PICTURE = "warmup.png"
EARLY = 0.1  # share of the updates in which the rise of the loss is measured
VALUES = ("val_loss", "loss")
EXPLAINED = (
    "An early rise is the largest increase of a loss over its first logged value within the first tenth of the "
    "updates, each arm at its own choice."
)
NO_ROWS = "There is no early rise to report: the first tenth of the updates has fewer than two logged rows."

Rises = dict[tuple[str, str], dict[Any, float]]  # by level and label: the early rise by seed


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare ``schedule.warmup=0`` with every other share within a strategy and a schedule.

    A constant schedule has neither a warm-up nor a decay, so its jobs are left out.

    Raises:
        UserError: no strategy has a result both with and without a warm-up.
    """
    found = compare_factors(table, [WARMUP], [STRATEGY, "schedule"])
    arms = [replace(arm, label=NONE if arm.label == "0" else f"warm-up {arm.label}") for arm in found.arms]
    found = replace(found, arms=arms).against(NONE)
    paired = {arm.level for arm in found.arms if arm.difference is not None}
    order = sorted((arm for arm in found.arms if arm.level in paired), key=lambda arm: (arm.level, arm.label))
    if not order:
        raise UserError(f"report=warmup needs a strategy with results at {WARMUP}=0 and at another, same schedule")
    found = replace(found, arms=order)
    rises = {value: rises_of(order, history, value) for value in VALUES}
    shown = next((value for value in VALUES if rises[value]), None)
    draw(found, rises[shown] if shown else {}, shown, folder / PICTURE)
    columns = result_columns(found, "warm-up") | {
        f"early rise of the {in_words(value)}": lambda arm, own=rises[value]: show_rise(arm, own) for value in VALUES
    }
    return Report(
        title="What does a warm-up change?",
        conclusion=conclude(found, rises[shown] if shown else {}, shown),
        body=[markdown_table(columns, order), found.how, EXPLAINED if shown else NO_ROWS],
        pictures={PICTURE: "With and without a warm-up"},
        notes=found.notes,
    )


def rises_of(arms: list[Arm], history: pd.DataFrame | None, value: str) -> Rises:
    """Return the early rise of a loss for every arm that has rows early enough."""
    found = {(arm.under, arm.label): early_rises(history, arm, value) for arm in arms}
    return {key: by_seed for key, by_seed in found.items() if by_seed}


def early_rises(history: pd.DataFrame | None, arm: Arm, value: str) -> dict[Any, float]:
    """Return by seed the rise of a loss above its first value in the first tenth of fine-tuning, at least 0."""
    rows = finetuning_rows(history, arm)
    if value not in rows:
        return {}
    rises = {}
    for seed, own in rows.groupby("_seed"):
        early = own[own["step"] <= EARLY * own["step"].max()].sort_values("step")[value].dropna()
        if len(early) > 1:
            rises[seed] = float(early.max() - early.iloc[0])
    return rises


def show_rise(arm: Arm, rises: Rises) -> str:
    """Write the early rise of an arm and its paired difference from that without a warm-up."""
    own, first = rises.get((arm.under, arm.label)), rises.get((arm.under, NONE))
    if own is None:
        return "-"
    text = show_interval(mean_interval(own.values()))
    return text if arm.label == NONE or first is None else f"{text}, {show_difference(paired_difference(own, first))}"


def conclude(found: Comparison, rises: Rises, shown: str | None) -> str:
    """Return the conclusion in one sentence."""
    text = found.summarize()
    if shown is None:
        return text
    lower = []
    for (under, label), own in rises.items():
        difference = paired_difference(own, rises.get((under, NONE), {}))
        if label != NONE and difference.excludes_zero and difference.mean < 0:
            lower.append(f"{label} under {under}")
    rise = f"the early rise of the {in_words(shown)} is"
    return f"{text.rstrip('.')}; {rise} " + (f"smaller with {listed(lower)}." if lower else "not shown to be smaller.")


def draw(found: Comparison, rises: Rises, shown: str | None, path: Path) -> None:
    """Draw the differences in the metric on the left and the early rises on the right, if there are any."""
    _, differences = interval_rows(found.arms, NONE)
    rows = [
        IntervalRow(f"{arm.under},\n{arm.label}", "", row.interval, row.values)
        for arm, row in zip(found.arms, differences, strict=True)
        if arm.difference is not None
    ]
    with picture(path, DOTS, 2.2 + 0.5 * max(len(rows), len(rises)), 2 if shown else 1) as axes:
        draw_rows(axes[0], rows)
        axes[0].axvline(0, color="#555555", linewidth=1)
        good = "right" if found.spec.higher else "left"
        axes[0].set_xlabel(f"{found.metric}, minus no warm-up\n({good} of 0: the warm-up is better)")
        if shown:
            early = [
                IntervalRow(under, label, mean_interval(own.values()), list(own.values()))
                for (under, label), own in rises.items()
            ]
            draw_rows(axes[1], early)
            axes[1].set_xlabel(f"largest rise of the {in_words(shown)}\nin the first tenth of the updates")
        legend_below(axes)

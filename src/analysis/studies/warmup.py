"""``report=warmup``: what does a warm-up change for each strategy under the same decay?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd

from ...errors import UserError, listed
from ..comparison import Arm, Comparison
from ..factors import STRATEGY, compare_factors, finetuning_rows
from ..formatting import in_words, markdown_table, show_difference, show_mean
from ..pages import result_columns
from ..plots import DOTS, IntervalRow, draw_differences, draw_rows, interval_rows, picture
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
    """
    found = compare_factors(table, [WARMUP], [STRATEGY, "schedule"])
    arms = [replace(arm, label=NONE if arm.label == "0" else f"warm-up {arm.label}") for arm in found.arms]
    found = replace(found, arms=arms).against(NONE)
    paired = {arm.level for arm in found.arms if arm.difference is not None}
    order = sorted((arm for arm in found.arms if arm.level in paired), key=lambda arm: (arm.level, arm.label))
    if not order:
        raise UserError(f"report=warmup needs a strategy with results at {WARMUP}=0 and at another, same schedule")
    found = replace(found, arms=order)
    rises = {value: early_rises(order, history, value) for value in VALUES}
    shown = next((value for value in VALUES if rises[value]), VALUES[0])
    draw(found, rises[shown], in_words(shown), folder / PICTURE)
    columns = result_columns(found, "warm-up") | {
        f"early rise of the {in_words(value)}": lambda arm, own=rises[value]: show_rise(arm, own) for value in VALUES
    }
    return Report(
        title="What does a warm-up change?",
        conclusion=conclude(found, rises[shown], in_words(shown)),
        body=[markdown_table(columns, order), found.how, EXPLAINED if rises[shown] else NO_ROWS],
        pictures={PICTURE: "With and without a warm-up"},
        notes=found.notes,
    )


def early_rises(arms: Sequence[Arm], history: pd.DataFrame | None, value: str) -> Rises:
    """Return the rise of a loss above its first value in the first tenth of fine-tuning, at least 0, where logged."""
    rises: Rises = {}
    for arm in arms:
        rows = finetuning_rows(history, arm)
        for seed, own in rows.groupby("_seed") if value in rows else ():
            early = own[own["step"] <= EARLY * own["step"].max()].sort_values("step")[value].dropna()
            if len(early) > 1:
                rises.setdefault((arm.under, arm.label), {})[seed] = float(early.max() - early.iloc[0])
    return rises


def show_rise(arm: Arm, rises: Rises) -> str:
    """Write the early rise of an arm and its paired difference from that without a warm-up."""
    own, first = rises.get((arm.under, arm.label)), rises.get((arm.under, NONE))
    if own is None:
        return "-"
    text = show_mean(own.values())
    return text if arm.label == NONE or first is None else f"{text}, {show_difference(paired_difference(own, first))}"


def conclude(found: Comparison, rises: Rises, loss: str) -> str:
    """Return the conclusion in one sentence."""
    lower = []
    for (under, label), own in rises.items():
        difference = paired_difference(own, rises.get((under, NONE), {}))
        if label != NONE and difference.excludes_zero and difference.mean < 0:
            lower.append(f"{label} under {under}")
    smaller = f"smaller with {listed(lower)}" if lower else "not shown to be smaller"
    rise = f"; the early rise of the {loss} is {smaller}." if rises else "."
    return found.summarize().rstrip(".") + rise


def draw(found: Comparison, rises: Rises, loss: str, path: Path) -> None:
    """Draw the differences in the metric on the left and the early rises on the right, if there are any."""
    _, differences = interval_rows(found.arms, NONE, lambda arm: f"{arm.under},\n{arm.label}", by_level=True)
    rows = [row._replace(series="") for row in differences if row.interval.n]
    with picture(path, DOTS, 2.2 + 0.5 * max(len(rows), len(rises)), 2 if rises else 1) as axes:
        draw_differences(axes[0], rows, found, named=True)
        axes[0].set_xlabel(f"{found.metric}, {axes[0].get_xlabel()}")
        if rises:
            early = [IntervalRow(*name, mean_interval(own.values()), list(own.values())) for name, own in rises.items()]
            draw_rows(axes[1], early)
            axes[1].set_xlabel(f"largest rise of the {loss}\nin the first tenth of the updates")

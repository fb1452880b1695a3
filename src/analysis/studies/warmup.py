"""``report=warmup``: what does a warm-up change, strategy by strategy, under the same decay?"""

# pandas' own annotations give indexing a union of everything it might return, which no caller can narrow.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
from matplotlib.axes import Axes

from ...errors import UserError, listed
from ..analysis import Analysis, Arm
from ..conditions import better, choose, finetuning_rows, lead, notes_of, rates, results, tuning
from ..plots import draw_bars, draw_interval, in_words, legend_below, picture
from ..report import markdown_table, show_interval
from ..statistics import Interval, mean_interval, paired_difference
from ..study import Report

WARMUP = "schedule.warmup"
PICTURE = "warmup.png"
EARLY = 0.1  # the share of the updates in which a rise of the loss is looked for
VALUES = ("val_loss", "loss")


class Pair(NamedTuple):
    """One strategy under one decay, without and with a warm-up.

    ``difference`` is the reported metric with minus without. ``rises`` holds by value (``val_loss``, ``loss``) the
    largest early rise by seed, without and with.
    """

    label: str
    without: Arm
    warm: Arm
    difference: Interval
    rises: dict[str, tuple[dict[Any, float], dict[Any, float]]]


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare ``schedule.warmup=0`` with every other share, within one strategy and one schedule.

    A constant schedule has no warm-up and no decay: comparing it with one that has both would not tell them apart, so
    such jobs are left out.

    Raises:
        UserError: no strategy has a result both with and without a warm-up.
    """
    analysis = choose(table, "strategy", "schedule", WARMUP)
    pairs = find_pairs(results(analysis), history)
    if not pairs:
        raise UserError(f"report=warmup needs a strategy with results at {WARMUP}=0 and at another, same schedule")
    shown = "val_loss" if any(pair.rises.get("val_loss") for pair in pairs) else "loss"
    panels = 2 if any(pair.rises.get(shown) for pair in pairs) else 1
    caption = "Marker and bar: mean. Line: its 95 % interval. Dots: seeds."
    with picture(folder / PICTURE, caption, 2.2 + 0.65 * len(pairs), panels) as axes:
        draw_differences(axes[0], pairs, analysis)
        if panels == 2:
            draw_rises(axes[1], pairs, shown)
        legend_below(axes)
    return Report(
        title="What does a warm-up change?",
        conclusion=conclude(pairs, analysis, shown),
        body="\n\n".join([markdown_table(columns(analysis), pairs), tuning(analysis), explain(pairs)]),
        pictures={PICTURE: "With and without a warm-up"},
        notes=notes_of(analysis, table),
    )


def find_pairs(found: dict[tuple[Any, ...], Arm], history: pd.DataFrame | None) -> list[Pair]:
    """Put together what differs in its warm-up alone."""
    pairs = []
    keys = sorted(key for key in found if key[2] > 0 and (*key[:2], 0.0) in found)
    several = len({schedule for _, schedule, _ in keys}) > 1 or len({share for _, _, share in keys}) > 1
    for strategy, schedule, share in keys:
        without, warm = found[strategy, schedule, 0.0], found[strategy, schedule, share]
        rises = {}
        for value in VALUES:
            both = tuple(early_rises(history, arm, value) for arm in (without, warm))
            if all(both):
                rises[value] = both
        label = f"{strategy}, {schedule} {share:g}" if several else str(strategy)
        pairs.append(Pair(label, without, warm, lead(warm, without), rises))
    return pairs


def early_rises(history: pd.DataFrame | None, arm: Arm, value: str) -> dict[Any, float]:
    """Return by seed how far a loss rises above its first value within the first tenth of fine-tuning, at least 0."""
    rows = finetuning_rows(history, arm)
    if value not in rows:
        return {}
    rises = {}
    for seed, own in rows.groupby("_seed"):
        early = own[own["step"] <= EARLY * own["step"].max()].sort_values("step")[value].dropna()
        if len(early) > 1:
            rises[seed] = float(early.max() - early.iloc[0])
    return rises


def rise_difference(pair: Pair, value: str) -> Interval:
    """Return the early rise with minus without, paired by seed."""
    without, warm = pair.rises[value]
    return paired_difference(warm, without)


def columns(analysis: Analysis) -> dict[str, Any]:
    """Return the columns of the table: name, and what a pair's cell says."""
    metric = in_words(analysis.question.metric)

    def rise(pair: Pair, value: str) -> str:
        if value not in pair.rises:
            return "-"
        difference = rise_difference(pair, value)
        both = " / ".join(show_interval(mean_interval(side.values())) for side in pair.rises[value])
        return f"{both}, difference {show_interval(difference, sign=True)}" + " *" * difference.excludes_zero

    return {
        "strategy": lambda pair: pair.label,
        "choice without / with": lambda pair: f"{rates(pair.without)} / {rates(pair.warm)}",
        f"{metric} without": lambda pair: show_interval(pair.without.test),
        "with": lambda pair: show_interval(pair.warm.test),
        "with minus without": lambda pair: (
            show_interval(pair.difference, sign=True) + " *" * pair.difference.excludes_zero
        ),
        "early rise of the validation loss": lambda pair: rise(pair, "val_loss"),
        "of the batch's loss": lambda pair: rise(pair, "loss"),
    }


def explain(pairs: Sequence[Pair]) -> str:
    """Say what an early rise is."""
    if not any(pair.rises for pair in pairs):
        return "There is no early rise to tell: the first tenth of the updates has fewer than two logged rows."
    return (
        "An early rise is how far a loss climbs above its first logged value within the first tenth of the updates, "
        "without / with a warm-up, each at its own choice."
    )


def conclude(pairs: Sequence[Pair], analysis: Analysis, shown: str) -> str:
    """Say in one sentence what the numbers carry."""
    metric = in_words(analysis.question.metric)
    n = min(pair.difference.n for pair in pairs)
    if n < 2:
        return f"Undecided: {n} common seed gives no interval, so only more seeds can tell."
    verdicts = {pair.label: better(pair.difference, analysis.question.higher) for pair in pairs}
    groups = [
        (f"a warm-up improves {metric} for", [k for k, v in verdicts.items() if v > 0]),
        (f"it worsens {metric} for", [k for k, v in verdicts.items() if v < 0]),
        ("it is undecided for", [k for k, v in verdicts.items() if v == 0]),
    ]
    if not groups[0][1] and not groups[1][1]:
        said = [f"undecided whether a warm-up changes {metric} for any of {listed(verdicts)}"]
    else:
        said = [f"{words} {listed(names)}" for words, names in groups if names]
    measured = [pair for pair in pairs if shown in pair.rises]
    calmer = [pair.label for pair in measured if rise_difference(pair, shown).high < 0]
    if measured:
        found = f"reduces it for {listed(calmer)}" if calmer else "is not shown to reduce it for any"
        said.append(f"as to the early rise of the {in_words(shown)}, it {found}")
    text = "; ".join(said)
    return f"{text[0].upper()}{text[1:]} (paired 95 % intervals at {n} seeds, each side at its own learning rate)."


def draw_differences(ax: Axes, pairs: Sequence[Pair], analysis: Analysis) -> None:
    """Draw each strategy's difference in the reported metric."""
    for place, pair in enumerate(pairs):
        values = [
            pair.warm.values[seed] - pair.without.values[seed]
            for seed in pair.warm.values
            if seed in pair.without.values
        ]
        draw_interval(ax, place, pair.difference, values, {"color": "#333333", "marker": "o"})
    ax.axvline(0, color="#555555", linewidth=1)
    ax.set_yticks(range(len(pairs)), [pair.label for pair in pairs])
    ax.set_ylim(len(pairs) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.locator_params(axis="x", nbins=5)
    good = "right" if analysis.question.higher else "left"
    ax.set_xlabel(f"{in_words(analysis.question.metric)}, with minus without\n({good} of 0: the warm-up helps)")


def draw_rises(ax: Axes, pairs: Sequence[Pair], value: str) -> None:
    """Draw the early rises of a loss, without and with."""
    there = [pair for pair in pairs if value in pair.rises]
    sides = {
        pair.label: dict(zip(("without warm-up", "with warm-up"), pair.rises[value], strict=True)) for pair in there
    }
    means = {
        label: {name: mean_interval(by_seed.values()) for name, by_seed in side.items()}
        for label, side in sides.items()
    }
    points = {label: {name: list(by_seed.values()) for name, by_seed in side.items()} for label, side in sides.items()}
    draw_bars(ax, means, points)
    if not all(math.isfinite(interval.mean) for side in means.values() for interval in side.values()):
        ax.set_title("some rises are not finite", color="#333333")
    if len(there) == len(pairs):  # the rows are the left panel's
        ax.set_yticks(range(len(pairs)), [])
    ax.set_xlabel(f"largest rise of the {in_words(value)}\nin the first tenth of the updates")

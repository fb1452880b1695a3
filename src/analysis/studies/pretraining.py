"""``report=pretraining``: which way of pre-training, or which setting of it, is worth more on the target task?"""

# pandas' own annotations give indexing a union of everything it might return, which no caller can narrow.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ...errors import UserError, listed
from ..analysis import Analysis, Arm, config_columns, follows, label_arms, show
from ..conditions import SEED, better, choose, direction, lead, notes_of, rates, results, tuning
from ..export import varies
from ..plots import draw_interval, in_words, legend_below, look_of, picture
from ..report import markdown_table, show_interval
from ..statistics import Interval, mean_interval
from ..study import Report

WAY = "pretraining"  # the column with each job's label
SETTINGS = ("pretrain_steps", "batch_size")  # that are not under `pretrain` and are compared like what is
UNDER = ("strategy", "data.train_rows")  # what a way of pre-training is tried under, each with a choice of its own
PICTURE = "pretraining.png"
# What a pre-training reached itself, of what is recorded of the source's test rows.
REACHED = ("accuracy", "pair_accuracy", "masked_accuracy", "perplexity", "knn", "probe", "rankme")
MEMORY, DEVIATION = "pretrain_peak_bytes", "deviation of its loss"


class Row(NamedTuple):
    """One way of pre-training under one strategy (and number of labels).

    ``difference`` is its reported metric minus the first way's, paired by seed; ``None`` for the first itself, and
    where that has no result there.
    """

    way: str
    under: str
    arm: Arm
    difference: Interval | None

    def marked(self, text: str) -> str:
        """Return a text with an asterisk where the difference excludes 0."""
        return text + " *" * (self.difference is not None and self.difference.excludes_zero)


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Compare everything of pre-training that was swept with the first of it, under each strategy.

    The first has the smallest numbers, and of names ``supervised``, or the first in alphabetical order.

    Raises:
        UserError: pre-training is the same in all jobs, or fewer than two ways of it have a result.
    """
    compared = swept(table)
    labelled = with_deviation(with_ways(table, compared), history)
    under = [name for name in UNDER if name in table and table[name].nunique() > 1]
    analysis = choose(labelled, *under, WAY)
    found = results(analysis)
    ways = [way for way in in_order(table, compared) if any(key[-1] == way for key in found)]
    if len(ways) < 2:
        raise UserError(
            f"report=pretraining needs at least 2 ways of pre-training with a result; this sweep has {len(ways)}"
        )
    rows = rows_of(found, ways)
    with picture(folder / PICTURE, "Marker: mean. Bar: its 95 % interval. Dots: seeds.", height_of(rows), 2) as axes:
        draw(axes, rows, ways, analysis)
    return Report(
        title=title_of(compared),
        conclusion=conclude(rows, ways[0], analysis),
        body="\n\n".join(body(rows, ways, analysis, labelled)),
        pictures={PICTURE: "What each pre-training is worth on the target task"},
        notes=[*notes_of(analysis, labelled), *both_stages(compared)],
    )


# --- what is compared ------------------------------------------------------------------------------------------------


def swept(table: pd.DataFrame) -> list[str]:
    """Return the columns that tell the ways of pre-training apart, ``pretrain`` first, none that adds nothing.

    A setting that only tells one option from another (their optimizers, say) adds nothing to their names.

    Raises:
        UserError: there is none.
    """
    names = [name for name in config_columns(table) if name.startswith("pretrain.")]
    known = [name for name in ("pretrain", *names, *SETTINGS) if name in table and varies(table[name])]
    chosen: list[str] = []
    told_apart = 1
    for name in known:
        count = len(table[[*chosen, name]].drop_duplicates())
        if count > told_apart and not (SEED in table and follows(table[name], table[SEED])):
            chosen, told_apart = [*chosen, name], count
    if not chosen:
        allowed = listed(["pretrain=...", "pretrain.<setting>=...", *(f"{name}=..." for name in SETTINGS)])
        raise UserError(f"report=pretraining compares ways of pre-training, and all jobs have one; sweep {allowed}")
    return chosen


def with_ways(table: pd.DataFrame, compared: Sequence[str]) -> pd.DataFrame:
    """Return the jobs with one column, among the configuration's, in the place of those that are compared."""
    labels = label_arms(table, compared)
    kept = table.drop(columns=list(compared))
    kept.insert(list(kept).index("objective"), WAY, labels)
    return kept


def with_deviation(table: pd.DataFrame, history: pd.DataFrame | None) -> pd.DataFrame:
    """Return the jobs with the standard deviation of pre-training's loss, over the logged rows of its last half."""
    if history is None or not {"stage", "loss", "step"} <= set(history):
        return table
    rows = history[(history["stage"] == "pretrain") & history["loss"].notna()]
    if rows.empty:
        return table
    found = {}
    for job, own in rows.groupby("job"):
        late = own["step"].to_numpy(float) > own["step"].max() / 2
        found[job] = float(np.std(own["loss"].to_numpy(float)[late], ddof=1)) if late.sum() > 1 else math.nan
    return table.assign(**{DEVIATION: table["job"].map(found)})


def in_order(table: pd.DataFrame, compared: Sequence[str]) -> list[str]:
    """Return the labels of the ways of pre-training by their values: numbers by size, names by the alphabet.

    Before these, ``supervised``: what others are worth is asked against labels.
    """
    labels = label_arms(table, compared)
    ways = table[list(compared)].assign(_label=labels).drop_duplicates("_label")
    ordered = ways.sort_values(list(compared), key=lambda column: column.replace("supervised", ""))
    return list(ordered["_label"])


def rows_of(found: Mapping[tuple[Any, ...], Arm], ways: Sequence[str]) -> list[Row]:
    """Return the arms with a result: by what they are tried under, then by the way."""
    rows = []
    for group in sorted({key[:-1] for key in found}):
        first = found.get((*group, ways[0]))
        for way in ways:
            arm = found.get((*group, way))
            if arm is not None:
                difference = None if first is None or way == ways[0] else lead(arm, first)
                rows.append(Row(way, name_of(group), arm, difference))
    return rows


def name_of(group: tuple[Any, ...]) -> str:
    """Name what ways of pre-training are tried under: ``full, 64 labels``."""
    return ", ".join(value if isinstance(value, str) else f"{show(float(value))} labels" for value in group)


# --- what is said of it ----------------------------------------------------------------------------------------------


def title_of(compared: Sequence[str]) -> str:
    """Write the question."""
    if compared[0] == "pretrain":
        return "Which pre-training is worth more?"
    parts: dict[str, list[str]] = {}  # settings by what they are of: the hot and the cold end of one temperature
    for name in compared:
        of, _, own = name.removeprefix("pretrain.").rpartition(".")
        parts.setdefault(of or own, []).extend([in_words(own)] if of else [])
    named = (in_words(of) + (f" ({' and '.join(own)})" if own else "") for of, own in parts.items())
    return f"Which {' and '.join(named)} of pre-training is worth more?"


def body(rows: Sequence[Row], ways: Sequence[str], analysis: Analysis, table: pd.DataFrame) -> list[str]:
    """Return the parts of the page between its conclusion and its picture."""
    groups = list(dict.fromkeys(row.under for row in rows))
    best = min(rows, key=lambda row: row.arm.validation.mean)
    parts = [markdown_table(columns(rows, ways[0], analysis), rows)]
    parts += [f"By validation, {best.way}{f' under {best.under}' * (len(groups) > 1)} is best. {tuning(analysis)}"]
    if len(groups) > 1:
        metric = in_words(analysis.question.metric)
        parts += [f"The same {metric} side by side; \\* as above:", markdown_table(matrix(rows, groups), ways)]
    reached = source_columns(table)
    if reached:
        parts += [
            "What pre-training itself reached on the source's test rows (the deviation: of its last half's rows):"
        ]
        parts += [markdown_table({"pre-training": str} | reached, ways)]
    return parts


def matrix(rows: Sequence[Row], groups: Sequence[str]) -> dict[str, Callable[[str], str]]:
    """Return the columns of a table with a row for each way: what it has under each strategy."""
    cells = {(row.way, row.under): row.marked(show_interval(row.arm.test)) for row in rows}
    return {"pre-training": str} | {group: lambda way, group=group: cells.get((way, group), "-") for group in groups}


def columns(rows: Sequence[Row], first: str, analysis: Analysis) -> dict[str, Callable[[Row], str]]:
    """Return the columns of the table of results: name, and what a row's cell says."""
    several = len({row.under for row in rows}) > 1
    known: dict[str, Callable[[Row], str]] = {"under": lambda row: row.under} if several else {}
    return known | {
        "pre-training": lambda row: row.way,
        ", ".join(analysis.question.tune) or "choice": lambda row: rates(row.arm),
        analysis.question.select: lambda row: f"{row.arm.validation.mean:.4g}",
        analysis.question.metric: lambda row: show_interval(row.arm.test),
        f"minus {first}": lambda row: (
            row.marked(show_interval(row.difference, sign=True))
            if row.difference is not None
            else "reference"
            if row.way == first
            else "-"
        ),
        "seeds": lambda row: str(row.arm.test.n),
    }


def source_columns(table: pd.DataFrame) -> dict[str, Callable[[str], str]]:
    """Return the columns of what pre-training reached: one value a seed, whatever came after it."""
    found: dict[str, Callable[[str], str]] = {}
    for name, column in [*((name, f"source_test_{name}") for name in REACHED), (DEVIATION, DEVIATION)]:
        if column in table and table[column].notna().any() and SEED in table:
            by_seed = table.groupby([WAY, SEED])[column].first()
            found[name] = lambda way, by_seed=by_seed: show_interval(mean_interval(by_seed[way].dropna()))
    if MEMORY in table and table[MEMORY].notna().any():
        most: dict[str, float] = table.groupby(WAY)[MEMORY].max().to_dict()
        found["peak MB of an update"] = lambda way: "-" if math.isnan(most[way]) else f"{most[way] / 1e6:.0f}"
    return found


def conclude(rows: Sequence[Row], first: str, analysis: Analysis) -> str:
    """Say in one sentence what the numbers carry."""
    metric = in_words(analysis.question.metric)
    others = [row for row in rows if row.difference is not None]
    n = min((row.difference.n for row in others if row.difference), default=0)
    if n < 2:
        return f"Undecided: {n} common seed{'s' * (n != 1)} give no interval, so only more seeds can tell."
    over = f"paired 95 % intervals at {n} seeds, each at its own choice"
    groups = list(dict.fromkeys(row.under for row in rows))
    named = {verdict: places(others, verdict, groups, analysis.question.higher) for verdict in (1, -1, 0)}
    if not named[1] and not named[-1]:
        tied = dict.fromkeys(row.way for row in others)
        return f"Undecided: on {metric} none of {listed(tied, 12)} can be told from {first} ({over})."
    words = {1: "better", -1: "worse", 0: "undecided"}
    said = [f"{words[verdict]}: {', '.join(labels)}" for verdict, labels in named.items() if labels]
    return f"Against {first} on {metric}, {'; '.join(said)} ({over})."


def places(rows: Sequence[Row], verdict: int, groups: Sequence[str], higher: bool) -> list[str]:
    """Name the ways that a verdict holds of, and under what where it does not hold everywhere."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row.difference is not None and better(row.difference, higher) == verdict:
            found.setdefault(row.way, []).append(row.under)
    everywhere = len(groups)
    return [way if len(under) == everywhere else f"{way} under {' and '.join(under)}" for way, under in found.items()]


def both_stages(compared: Sequence[str]) -> list[str]:
    """Say where what is compared is no setting of pre-training alone."""
    if "batch_size" not in compared:
        return []
    return ["batch_size is that of fine-tuning too: what differs need not come from pre-training alone."]


# --- the picture -----------------------------------------------------------------------------------------------------


def height_of(rows: Sequence[Row]) -> float:
    """Return a picture's height, in inches, that leaves each row its own line."""
    return 1.9 + 0.36 * max(len(rows), 3)


def draw(axes: Sequence[Axes], rows: Sequence[Row], ways: Sequence[str], analysis: Analysis) -> None:
    """Draw the metric on the left and its difference from the first way on the right, a band of rows for each way."""
    groups = list(dict.fromkeys(row.under for row in rows))
    first = {row.under: row.arm for row in rows if row.way == ways[0]}
    for row in rows:
        place = ways.index(row.way) * len(groups) + groups.index(row.under)
        look = look_of(groups.index(row.under))
        draw_interval(axes[0], place, row.arm.test, list(row.arm.values.values()), look)
        if row.difference is not None:
            own, reference = row.arm.values, first[row.under].values
            draw_interval(axes[1], place, row.difference, [own[k] - reference[k] for k in own if k in reference], look)
    if len(groups) > 1:
        for number, group in enumerate(groups):
            look = look_of(number)
            axes[0].plot([], [], ms=9, marker=look["marker"], color=look["color"], label=group)
    middles = [(number + 0.5) * len(groups) - 0.5 for number in range(len(ways))]
    axes[0].set_yticks(middles, ways)
    axes[1].set_yticks(middles, [])
    for ax in axes:
        ax.set_ylim(len(ways) * len(groups) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        ax.locator_params(axis="x", nbins=5)
        for number in range(1, len(ways)):
            ax.axhline(number * len(groups) - 0.5, color="#dddddd", linewidth=1)
    good = "right" if analysis.question.higher else "left"
    axes[0].set_xlabel(direction(analysis))
    axes[1].axvline(0, color="#555555", linewidth=1)
    axes[1].text(0, middles[0], " reference", va="center", color="#777777")
    axes[1].set_xlabel(f"minus that of {ways[0]}\n(by seed; {good} of 0: better)")
    legend_below(axes)

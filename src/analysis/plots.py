"""The pictures of an analysis: the learning-rate sweep, the loss curves, the arms side by side.

Colours are Okabe and Ito's, which colour-blind readers can tell apart (jfly.uni-koeln.de/color, 2008); each
arm also has its own marker and line style, the same ones in every picture.
"""

# pandas' own annotations give indexing a union of everything it might return, which no caller can narrow.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..tracking.records import STAGES
from .analysis import LOST, Analysis, Arm, show, show_choice
from .statistics import Interval

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")  # lengths without a common factor: 315 looks
LINES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (10, 3)))
LOOK = {
    "font.size": 11,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": "#e6e6e6",
    "axes.axisbelow": True,
    "axes.titlesize": 11,
    "axes.titlelocation": "left",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 6,
}
BAND = "Line: mean over seeds. Band: smallest to largest seed."
INTERVAL_BAND = "Line: mean over seeds. Band: its 95 % interval."
STAGE_TITLES = {"pretrain": "1. Pre-training", "finetune": "2. Fine-tuning", "": ""}
WORDS = {"val": "validation", "r2": "R²", "lr": "learning rate", "lr_fine": "fine-tuning learning rate"}


def in_words(name: str) -> str:
    """Write a column's name as an axis does: ``val_loss`` is ``validation loss``."""
    return WORDS.get(name) or " ".join(WORDS.get(word, word) for word in name.split("_"))


def style(analysis: Analysis, label: str) -> dict[str, Any]:
    """Return an arm's colour, marker and line, by its place in the sweep and not in the ranking."""
    return look_of(list(dict.fromkeys(analysis.points["arm"])).index(label))


def look_of(place: int) -> dict[str, Any]:
    """Return the colour, marker and line of the thing at a place of a list."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place % len(LINES)],
    }


@contextmanager
def picture(path: Path, caption: str, height: float, panels: int = 1, rows: int = 1) -> Iterator[Sequence[Axes]]:
    """Give axes below a caption, row by row, then write a PNG of 1600 pixels' width that reads well at half of it."""
    with mpl.rc_context(LOOK):
        figure = Figure(figsize=(8, height), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(caption, fontsize=10.5, color="#555555")
        yield list(figure.subplots(rows, panels, squeeze=False).ravel())
        figure.savefig(path)


def needs_log(values: Any) -> bool:
    """Tell whether positive values span more than a factor of 30: a linear axis would flatten most."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    return bool(values.size) and values.min() > 0 and values.max() / values.min() > 30


def legend_below(axes: Sequence[Axes]) -> None:
    """Put one legend for all panels under them, where it covers no data."""
    entries = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= {label: handle for label, handle in zip(labels, handles, strict=True) if label}
    if entries:
        figure = axes[0].figure
        room = 9 * figure.get_figwidth()  # letters in a line, a line's sample taking some eight
        columns = max(1, int(room / (8 + max(map(len, entries)))))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(4, columns, len(entries)))


def plot_rates(analysis: Analysis, path: Path) -> bool:
    """Draw the selection metric against the first tuned column; other tuned columns are at their best.

    Returns:
        Whether there was something to draw: a numeric tuned column with more than one value.
    """
    question, points = analysis.question, analysis.points
    name = question.tune[0] if question.tune else None
    if name is None or not pd.api.types.is_numeric_dtype(points[name]) or points[name].nunique() < 2:
        return False
    with picture(path, f"{BAND} Ring: the chosen value.", height=4.6) as (ax,):
        tried = sorted(points[name].unique())
        if tried[0] > 0:
            ax.set_xscale("log")
        if len(tried) <= 8:  # the values themselves say more than powers of ten
            ax.set_xticks(tried, [show(value) for value in tried])
            ax.minorticks_off()
        lost = points[points["completed"] < points["jobs"]]
        for arm in analysis.arms:
            draw_rates(ax, analysis, arm.label, name)
        finite = points[["low", "high"]].to_numpy(dtype=float)
        if needs_log(finite):
            ax.set_yscale("log")
        if len(lost):
            draw_lost(ax, analysis, lost, name)
        ax.set_xlabel(in_words(name))
        better = "higher" if question.select_higher else "lower"
        ax.set_ylabel(f"{in_words(question.select)}\n({better} is better)")
        legend_below([ax])
    return True


def draw_rates(ax: Axes, analysis: Analysis, label: str, name: str) -> None:
    """Draw one arm's line, band and chosen point; points that lost seeds are hollow."""
    points = analysis.points[analysis.points["arm"] == label].dropna(subset=["mean"])
    points = points.sort_values("mean", ascending=not analysis.question.select_higher)
    points = points.drop_duplicates(name).sort_values(name)  # other tuned columns at their best
    look = style(analysis, label)
    x = points[name].to_numpy(dtype=float)
    draw_band(ax, x, points["low"], points["high"], look["color"])
    ax.plot(x, points["mean"], label=label, **look)
    partial = points[points["completed"] < points["jobs"]]
    ax.plot(partial[name], partial["mean"], **(look | {"linestyle": "none", "markerfacecolor": "white"}))
    chosen = points[points["chosen"]]
    ax.plot(chosen[name], chosen["mean"], "o", ms=14, mfc="none", mec=look["color"], mew=1.8)


def draw_band(ax: Axes, x: Any, low: Any, high: Any, colour: str) -> None:
    """Draw a band whose edges stay visible where bands of several arms overlap."""
    ax.fill_between(x, low, high, color=colour, alpha=0.07, linewidth=0)
    for edge in (low, high):
        ax.plot(x, edge, color=colour, alpha=0.5, linewidth=0.7)


def draw_lost(ax: Axes, analysis: Analysis, lost: pd.DataFrame, name: str) -> None:
    """Mark the points that lost seeds on a strip of their own above the axes, one row an arm."""
    arms = list(dict.fromkeys(lost["arm"]))
    strip = ax.inset_axes((0, 1.02, 1, 0.075 * len(arms)), sharex=ax)
    strip.set_ylim(-0.6, len(arms) - 0.4)
    for _, row in lost.iterrows():
        y, colour = arms.index(row["arm"]), style(analysis, row["arm"])["color"]
        strip.plot(row[name], y, "x", color=colour, ms=8, mew=2.2)
        text = f"  {row['jobs'] - row['completed']} of {row['jobs']}"
        strip.annotate(text, (row[name], y), color=colour, va="center", ha="left", annotation_clip=False)
    strip.set_yticks(range(len(arms)), [lost_label(lost, arm) for arm in arms])
    strip.tick_params(axis="x", which="both", bottom=False, labelbottom=False)
    strip.spines[["bottom"]].set_visible(False)


def lost_label(lost: pd.DataFrame, arm: str) -> str:
    """Name what became of an arm's lost jobs: ``full diverged``."""
    own = lost[lost["arm"] == arm]
    return f"{arm} {' or '.join(status for status in LOST if own[status].any())}"


def plot_curves(analysis: Analysis, history: pd.DataFrame, path: Path) -> bool:
    """Draw the curves of both stages at each arm's choice.

    Args:
        analysis: whose arms to draw.
        history: of the same sweep, see :func:`src.analysis.export.history_table`.
        path: of the PNG.

    Returns:
        Whether there was something to draw.
    """
    panels = {stage: stage_curves(analysis, history, stage) for stage in (*STAGES, "")}
    panels = {stage: (value, curves) for stage, (value, curves) in panels.items() if curves}
    if not panels:
        return False
    with picture(path, BAND, height=4.3, panels=len(panels)) as axes:
        for ax, (stage, (value, curves)) in zip(axes, panels.items(), strict=True):
            draw_curves(ax, analysis, STAGE_TITLES[stage], curves)
            ax.set_ylabel(in_words(value))
            if needs_log(np.concatenate([curve.to_numpy() for curve in curves.values()])):
                ax.set_yscale("log")
        legend_below(axes)
    return True


def draw_curves(ax: Axes, analysis: Analysis, title: str, curves: dict[str, pd.DataFrame]) -> None:
    """Draw one stage; arms that went through the very same stage get one line."""
    first = next(iter(curves.values()))
    if len(curves) > 1 and all(curve.equals(first) for curve in curves.values()):
        curves, title = {"": first}, f"{title}, shared by all"
    for label, curve in curves.items():
        look = style(analysis, label) | {"marker": None} if label else {"color": "#555555"}
        draw_band(ax, curve.index, curve["min"], curve["max"], look["color"])
        ax.plot(curve.index, curve["mean"], label=label, **look)
    ax.set_title(title, color="#333333")
    ax.set_xlabel("updates")


def stage_curves(analysis: Analysis, history: pd.DataFrame, stage: str) -> tuple[str, dict[str, pd.DataFrame]]:
    """Return a stage's panel: the value's name, and each arm's mean, min and max over seeds by step."""
    rows = history[history["stage"].fillna("") == stage]
    for value in (analysis.question.select, "val_loss", "loss"):
        if value in rows and rows[value].notna().any():
            break
    else:
        return "", {}
    curves = {}
    for arm in analysis.arms:
        own = rows.merge(arm.jobs[["job", "job_id"]], on=["job", "job_id"]).dropna(subset=[value])
        if len(own):
            curves[arm.label] = own.groupby("step")[value].agg(["mean", "min", "max"])
    return value, curves


def plot_arms(analysis: Analysis, path: Path) -> bool:
    """Draw each arm's reported metric at its choice, and beside it the paired difference from the reference.

    Returns:
        Whether there was something to draw.
    """
    arms = [arm for arm in analysis.arms if arm.chosen is not None]
    if not arms:
        return False
    question = analysis.question
    reference = next((arm.values for arm in arms if arm.label == question.reference), {})
    paired = any(arm.difference is not None and arm.difference.n for arm in arms)
    caption = "Marker: mean. Bar: its 95 % interval. Dots: seeds."
    with picture(path, caption, height=1.6 + 0.5 * len(arms), panels=1 + paired) as axes:
        for place, arm in enumerate(arms):
            look = style(analysis, arm.label)
            draw_interval(axes[0], place, arm.test, list(arm.values.values()), look)
            if paired and arm.difference is not None:
                pairs = [arm.values[key] - reference[key] for key in arm.values if key in reference]
                draw_interval(axes[1], place, arm.difference, pairs, look)
        better = "higher" if question.higher else "lower"
        axes[0].set_xlabel(f"{in_words(question.metric)}\n({better} is better)")
        axes[0].set_yticks(range(len(arms)), [row_label(arm) for arm in arms])
        if paired:
            axes[1].axvline(0, color="#555555", linewidth=1)
            axes[1].set_xlabel(f"{in_words(question.metric)} minus {question.reference}'s,\npaired by {question.pair}")
            axes[1].set_yticks(range(len(arms)), [])
        for ax in axes:
            ax.set_ylim(len(arms) - 0.5, -0.5)
            ax.grid(axis="y", visible=False)
            ax.locator_params(axis="x", nbins=5)
    return True


def draw_interval(ax: Axes, place: int, interval: Interval, values: list[float], look: dict[str, Any]) -> None:
    """Draw a mean with its interval, and the values it is of just below."""
    ax.plot(values, [place + 0.22] * len(values), ".", color=look["color"], alpha=0.7, ms=10, mew=0)
    if not np.isnan(interval.low):
        ends = [interval.low, interval.high]
        ax.plot(ends, [place] * 2, color=look["color"], linewidth=2.5, solid_capstyle="butt")
    ax.plot(interval.mean, place, ms=9, color=look["color"], marker=look["marker"])


def draw_means(ax: Axes, x: Sequence[float], means: Sequence[Interval], label: str, look: dict[str, Any]) -> None:
    """Draw a line through means with a band of their intervals; without intervals (one seed) there is no band."""
    low, high = [i.low for i in means], [i.high for i in means]
    draw_band(ax, x, low, high, look["color"])
    ax.plot(x, [i.mean for i in means], label=label, **look)


def set_ticks(ax: Axes, values: Sequence[float], log: bool = True) -> None:
    """Put the values that were tried on the horizontal axis, a logarithmic one where it can be."""
    if log and min(values) > 0:
        ax.set_xscale("log")
    ax.set_xticks(values, [show(value) for value in values])
    ax.minorticks_off()


def draw_bars(
    ax: Axes,
    bars: Mapping[str, Mapping[str, Interval]],
    points: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
) -> None:
    """Draw bars from 0 to the right with intervals, a group for each outer key and in it a bar for each inner one.

    Args:
        ax: where.
        bars: means by group from top to bottom, then by series; a single series needs no legend, so it has no label.
        points: the values behind each mean (seeds), drawn as dots; may leave bars out.
    """
    series = list(dict.fromkeys(name for group in bars.values() for name in group))
    height = 0.8 / len(series)
    for number, name in enumerate(series):
        colour, label = COLOURS[number % len(COLOURS)], name if len(series) > 1 else None
        for place, (group, own) in enumerate(bars.items()):
            if name not in own:
                continue
            y = place + (number - (len(series) - 1) / 2) * height
            ax.barh(y, own[name].mean, 0.9 * height, color=colour, alpha=0.7, label=label)
            label = None  # one entry of the legend is enough
            if not np.isnan(own[name].half):
                ax.errorbar(own[name].mean, y, xerr=own[name].half, ecolor="#222222", elinewidth=1.6, capsize=4)
            seen = (points or {}).get(group, {}).get(name, [])
            ax.plot(seen, [y + 0.3 * height] * len(seen), ".", color="#222222", alpha=0.5, ms=6, mew=0)
    ax.axvline(0, color="#555555", linewidth=1)
    ax.set_yticks(range(len(bars)), list(bars))
    ax.set_ylim(len(bars) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.locator_params(axis="x", nbins=5)


def row_label(arm: Arm) -> str:
    """Name an arm with its choice below."""
    values = ", ".join(show(value) for value in (arm.chosen or {}).values())
    return f"{arm.label}\n({show_choice(arm.chosen)})" if arm.chosen and values else arm.label


def plot_range_test(
    rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, suggestions: Mapping[str, float], path: Path
) -> None:
    """Draw a learning-rate range test: the loss of each batch, smoothed, and the suggested rates.

    Args:
        rates: learning rates, ascending.
        losses: of the batches.
        smoothed: the same, smoothed.
        suggestions: rates by name.
        path: of the PNG file.
    """
    with picture(path, "Dots: batches. Line: smoothed. The curve ends where the loss exploded.", 4.2) as axes:
        ax = axes[0]
        ax.plot(rates, losses, ".", color="#999999", ms=4)
        ax.plot(rates, smoothed, color=COLOURS[0])
        for place, (name, rate) in enumerate(suggestions.items(), 1):
            ax.axvline(rate, color=COLOURS[place], linestyle=LINES[place], label=f"{name}: {rate:.2g}")
        ax.set_xscale("log")
        spread = float(np.ptp(smoothed)) or 1.0
        top = max(smoothed[0], float(np.median(smoothed))) + 0.6 * spread
        ax.set_ylim(min(smoothed.min(), losses.min()) - 0.1 * spread, top)
        ax.set_xlabel("learning rate (log scale)")
        ax.set_ylabel("training loss")
        ax.legend()

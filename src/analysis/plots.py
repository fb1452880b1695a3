"""Pictures of a comparison (learning-rate sweep, loss curves, arms), and parts of the pictures of studies.

The colours are those of Okabe and Ito (jfly.uni-koeln.de/color, 2008), which colour-blind readers can distinguish. Each
arm also has its own marker and line style, the same in every picture.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib as mpl
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from ..tracking.record_reader import STAGES
from .comparison import Arm, Comparison
from .formatting import in_words, show, show_choice
from .statistics import ConfidenceInterval

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
GREY = "#555555"  # of reference lines and captions
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<")  # lengths without a common factor: 315 styles
LINES = ("-", (0, (6, 2)), (0, (2, 1.5)), (0, (6, 2, 1.5, 2)), (0, (10, 3)))
RC = {
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
DOTS = "Marker: mean. Bar: its 95 % interval. Dots: seeds."
INTERVAL_BAND = "Line: mean over seeds. Band: its 95 % interval."
STAGE_TITLES = {"pretrain": "1. Pre-training", "finetune": "2. Fine-tuning", "": ""}


def arm_style(comparison: Comparison, label: str) -> dict[str, Any]:
    """Return an arm's style by its position in the sweep, which does not depend on the results."""
    return style_of(list(dict.fromkeys(comparison.points["arm"])).index(label))


def style_of(place: int) -> dict[str, Any]:
    """Return the colour, marker and line style of the item at a position of a list."""
    return {
        "color": COLOURS[place % len(COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": LINES[place % len(LINES)],
    }


@contextmanager
def picture(path: Path, caption: str, height: float, panels: int = 1, rows: int = 1) -> Iterator[Sequence[Axes]]:
    """Yield axes below a caption, row by row, then write a PNG of 1600 pixels' width.

    One legend for all panels lies below them, unless a panel has its own.
    """
    with mpl.rc_context(RC):
        figure = Figure(figsize=(8, height), dpi=200, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(caption, fontsize=10.5, color=GREY)
        axes = list(figure.subplots(rows, panels, squeeze=False).ravel())
        yield axes
        if not any(ax.get_legend() for ax in axes):
            put_legend_below(figure, axes)
        figure.savefig(path)


def put_legend_below(figure: Figure, axes: Sequence[Axes]) -> None:
    """Put one legend for all panels below them."""
    entries = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        entries |= {label: handle for label, handle in zip(labels, handles, strict=True) if label}
    if entries:
        characters = 9 * figure.get_figwidth()  # in a line of the legend; the sample of an entry takes about 8
        widths = [8 + len(label) for label in entries]
        columns = len(entries) if sum(widths) <= characters else max(1, int(characters / max(widths)))
        figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=min(4, columns))


def needs_log(values: Any) -> bool:
    """Return whether the values are positive and span more than a factor of 30."""
    values = np.asarray(values, dtype=float)
    values = values[np.isfinite(values)]
    return bool(values.size) and values.min() > 0 and values.max() / values.min() > 30


def plot_rates(comparison: Comparison, path: Path) -> bool:
    """Draw the selection metric against the first tuned column, with the other tuned columns at their best value.

    Return False, without a picture, unless a tuned column is numeric and has more than one value.
    """
    spec, points = comparison.spec, comparison.points
    name = spec.tune[0] if spec.tune else None
    if name is None or not pd.api.types.is_numeric_dtype(points[name]) or points[name].nunique() < 2:
        return False
    lost = points[points["completed"] < points["jobs"]]
    caption = f"{BAND} Ring: the chosen value." + (" Cross: lost seeds." if len(lost) else "")
    with picture(path, caption, height=4.6) as (ax,):
        tried = sorted(points[name].unique())
        if len(tried) <= 8:
            set_ticks(ax, tried, in_words(name))
        elif tried[0] > 0:
            ax.set_xscale("log")
        for arm in comparison.arms:
            draw_rates(ax, comparison, arm.label, name)
        finite = points[["low", "high"]].to_numpy(dtype=float)
        if needs_log(finite):
            ax.set_yscale("log")
        if len(lost):
            draw_lost(ax, comparison, lost, name)
        ax.set_xlabel(in_words(name))
        better = "higher" if spec.select_higher else "lower"
        ax.set_ylabel(f"{in_words(spec.select)}\n({better} is better)")
    return True


def draw_rates(ax: Axes, comparison: Comparison, label: str, name: str) -> None:
    """Draw the line, the band and the chosen point of an arm; the marker of a point that lost seeds is hollow."""
    points = comparison.points[comparison.points["arm"] == label].dropna(subset=["mean"])
    points = points.sort_values("mean", ascending=not comparison.spec.select_higher)
    points = points.drop_duplicates(name).sort_values(name)  # other tuned columns at their best
    style = arm_style(comparison, label)
    x = points[name].to_numpy(dtype=float)
    draw_band(ax, x, points["low"], points["high"], style["color"])
    ax.plot(x, points["mean"], label=label, **style)
    partial = points[points["completed"] < points["jobs"]]
    ax.plot(partial[name], partial["mean"], **(style | {"linestyle": "none", "markerfacecolor": "white"}))
    chosen = points[points["chosen"]]
    ax.plot(chosen[name], chosen["mean"], "o", ms=14, mfc="none", mec=style["color"], mew=1.8)


def draw_band(ax: Axes, x: Any, low: Any, high: Any, colour: str) -> None:
    """Draw a band with thin edges, which stay visible where the bands of several arms overlap."""
    ax.fill_between(x, low, high, color=colour, alpha=0.07, linewidth=0)
    for edge in (low, high):
        ax.plot(x, edge, color=colour, alpha=0.5, linewidth=0.7)


def draw_lost(ax: Axes, comparison: Comparison, lost: pd.DataFrame, name: str) -> None:
    """Mark the points that lost seeds above the axes, in a line for each arm, with the number of lost seeds."""
    arms = list(dict.fromkeys(lost["arm"]))
    for _, row in lost.iterrows():
        x, y, colour = row[name], 1.03 + 0.055 * arms.index(row["arm"]), arm_style(comparison, row["arm"])["color"]
        above = {"color": colour, "transform": ax.get_xaxis_transform(), "clip_on": False}
        ax.plot(x, y, "x", ms=8, mew=2.2, **above)
        ax.text(x, y, f"{row['jobs'] - row['completed']} of {row['jobs']}   ", va="center", ha="right", **above)


def plot_curves(comparison: Comparison, history: pd.DataFrame, path: Path) -> bool:
    """Draw the curves of both stages at the choice of each arm from :func:`src.analysis.export.history_table`.

    Return False, without a picture, if there are none.
    """
    panels = {stage: stage_curves(comparison, history, stage) for stage in (*STAGES, "")}
    panels = {stage: (value, curves) for stage, (value, curves) in panels.items() if curves}
    if not panels:
        return False
    with picture(path, BAND, height=4.3, panels=len(panels)) as axes:
        for ax, (stage, (value, curves)) in zip(axes, panels.items(), strict=True):
            draw_curves(ax, comparison, STAGE_TITLES[stage], curves)
            ax.set_ylabel(in_words(value))
            if needs_log(np.concatenate([curve.to_numpy() for curve in curves.values()])):
                ax.set_yscale("log")
    return True


def draw_curves(ax: Axes, comparison: Comparison, title: str, curves: dict[str, pd.DataFrame]) -> None:
    """Draw the curves of one stage; if all arms share the stage, there is one line."""
    first = next(iter(curves.values()))
    if len(curves) > 1 and all(curve.equals(first) for curve in curves.values()):
        curves, title = {"": first}, f"{title}, shared by all"
    for label, curve in curves.items():
        style = arm_style(comparison, label) | {"marker": None} if label else {"color": GREY}
        draw_band(ax, curve.index, curve["min"], curve["max"], style["color"])
        ax.plot(curve.index, curve["mean"], label=label, **style)
    ax.set_title(title, color="#333333")
    ax.set_xlabel("updates")


def stage_curves(comparison: Comparison, history: pd.DataFrame, stage: str) -> tuple[str, dict[str, pd.DataFrame]]:
    """Return the name of the value to draw, and the mean, min and max over seeds by step of each arm."""
    rows = history[history["stage"].fillna("") == stage]
    for value in (comparison.spec.select, "val_loss", "loss"):
        if value in rows and rows[value].notna().any():
            break
    else:
        return "", {}
    curves = {}
    for arm in comparison.arms:
        own = rows.merge(arm.jobs[["job", "job_id"]], on=["job", "job_id"]).dropna(subset=[value])
        if len(own):
            curves[arm.label] = own.groupby("step")[value].agg(["mean", "min", "max"])
    return value, curves


def plot_arms(comparison: Comparison, path: Path) -> bool:
    """Draw the reported metric of each arm and level and, beside it, the paired difference from the reference.

    Return False, without a picture, if no arm has a result.
    """
    arms = [arm for arm in comparison.arms if arm.chosen is not None]
    if not arms:
        return False
    spec, by_level = comparison.spec, any(arm.under for arm in arms)

    def name(arm: Arm) -> str:
        return arm.label if by_level or not arm.chosen else f"{arm.label}\n({show_choice(arm.chosen)})"

    styles = None if by_level else {name(arm): arm_style(comparison, arm.label) for arm in arms}
    tests, differences = interval_rows(arms, spec.reference, name, by_level)
    paired = any(row.interval.n for row in differences)
    with picture(path, DOTS, 1.7 + (0.36 if by_level else 0.5) * max(len(arms), 2), panels=1 + paired) as axes:
        draw_rows(axes[0], tests, styles)
        axes[0].set_xlabel(comparison.axis_label)
        if paired:
            draw_differences(axes[1], differences, comparison, styles, named=False)
    return True


class IntervalRow(NamedTuple):
    """An interval of :func:`draw_rows`: rows of one label share a band, ``series`` decides their style."""

    label: str
    series: str
    interval: ConfidenceInterval
    values: Sequence[float]


def interval_rows(
    arms: Sequence[Arm], reference: str | None, label: Any = lambda arm: arm.label, by_level: bool = False
) -> tuple[list[IntervalRow], list[IntervalRow]]:
    """Return the rows of the reported metric and of the differences from the reference arm.

    An arm without a difference has an empty row there. The series are the labels, or the levels with ``by_level``.
    """
    tests, differences = [], []
    for arm in arms:
        name = label(arm)
        series = arm.under if by_level else name
        tests.append(IntervalRow(name, series, arm.test, list(arm.values.values())))
        first = next((one.values for one in arms if (one.label, one.level) == (reference, arm.level)), {})
        pairs = [arm.values[key] - first[key] for key in arm.values if key in first]
        nothing = ConfidenceInterval(np.nan, np.nan, np.nan, 0)
        found = (nothing, []) if arm.difference is None else (arm.difference, pairs)
        differences.append(IntervalRow(name, series, *found))
    return tests, differences


def draw_rows(
    ax: Axes, rows: Sequence[IntervalRow], styles: Mapping[str, Mapping[str, Any]] | None = None, named: bool = True
) -> None:
    """Draw intervals below one another: a marker for the mean, a bar for the interval, dots for the values.

    Rows of one label lie together. ``styles`` are by series; by default, each of several series gets its own and an
    entry in the legend. ``named`` writes the labels on the axis.
    """
    labels, series = (list(dict.fromkeys(names)) for names in ([r.label for r in rows], [r.series for r in rows]))
    ordered = sorted(rows, key=lambda row: labels.index(row.label))
    places = {label: [i for i, row in enumerate(ordered) if row.label == label] for label in labels}
    own = styles or {name: style_of(number) for number, name in enumerate(series)}
    for place, row in enumerate(ordered):
        colour, marker = own[row.series]["color"], own[row.series]["marker"]
        ax.plot(row.values, [place + 0.22] * len(row.values), ".", color=colour, alpha=0.7, ms=10, mew=0)
        if not np.isnan(row.interval.low):
            ends = [row.interval.low, row.interval.high]
            ax.plot(ends, [place] * 2, color=colour, linewidth=2.5, solid_capstyle="butt")
        ax.plot(row.interval.mean, place, ms=9, color=colour, marker=marker)
    if styles is None and len(series) > 1:
        for name in series:
            ax.plot([], [], ms=9, linestyle="none", label=name, **{k: own[name][k] for k in ("color", "marker")})
    ax.set_yticks([sum(at) / len(at) for at in places.values()], labels if named else [])
    ax.set_ylim(len(rows) - 0.5, -0.5)
    ax.grid(axis="y", visible=False)
    ax.locator_params(axis="x", nbins=5)
    if len(labels) < len(rows):
        for at in list(places.values())[1:]:
            ax.axhline(at[0] - 0.5, color="#dddddd", linewidth=1)


def draw_differences(ax: Axes, rows: Sequence[IntervalRow], comparison: Comparison, *styles: Any, named: bool) -> None:
    """Draw differences from the reference arm as :func:`draw_rows` does, beside a line at 0."""
    draw_rows(ax, rows, *styles, named=named)
    ax.axvline(0, color=GREY, linewidth=1)
    good = "right" if comparison.spec.higher else "left"
    ax.set_xlabel(f"minus {comparison.spec.reference}, paired by {comparison.spec.pair}\n({good} of 0 is better)")


def draw_means(
    ax: Axes, x: Sequence[float], means: Sequence[ConfidenceInterval], label: str, style: dict[str, Any]
) -> None:
    """Draw a line through means with a band of their intervals; a single seed has no band."""
    low, high = [i.low for i in means], [i.high for i in means]
    draw_band(ax, x, low, high, style["color"])
    ax.plot(x, [i.mean for i in means], label=label, **style)


def draw_lines(ax: Axes, x: Sequence[float], lines: Mapping[str, Sequence[Arm]], labels: tuple[str, str]) -> None:
    """Draw the reported metric of the arms of each named line over ``x``, and label both axes."""
    for place, (name, arms) in enumerate(lines.items()):
        draw_means(ax, x, [arm.test for arm in arms], name, style_of(place))
    set_ticks(ax, x, labels[0])
    ax.set_ylabel(labels[1])


def set_ticks(ax: Axes, values: Sequence[float], label: str) -> None:
    """Put the tried values on the horizontal axis, which is logarithmic if they are positive."""
    if min(values) > 0:
        ax.set_xscale("log")
    ax.set_xticks(values, [show(value) for value in values])
    ax.minorticks_off()
    ax.set_xlabel(label)


def draw_tradeoff(
    ax: Axes, points: Mapping[str, tuple[ConfidenceInterval, ConfidenceInterval]], labels: tuple[str, str]
) -> None:
    """Draw each named pair of means with both intervals, and a legend beside the axes."""
    for place, (name, (x, y)) in enumerate(points.items()):
        style = style_of(place) | {"linestyle": "none", "capsize": 3, "label": name}
        ax.errorbar(x.mean, y.mean, xerr=np.nan_to_num(x.half), yerr=np.nan_to_num(y.half), **style)
    ax.set_xlabel(labels[0])
    ax.set_ylabel(labels[1])
    ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))


def plot_range_test(
    rates: np.ndarray, losses: np.ndarray, smoothed: np.ndarray, suggestions: Mapping[str, float], path: Path
) -> None:
    """Draw the losses of the batches over ascending ``rates``, the smoothed losses, and suggested rates by name."""
    with picture(path, "Dots: batches. Line: smoothed. The curve ends where the loss diverged.", 4.2) as (ax,):
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


def draw_averages(table: pd.DataFrame, path: Path, new_head: bool) -> None:
    """Draw a marker for each row of the table of averaged weights: the target's test metric against the source's.

    Points of an interpolation are joined; jobs that the greedy soup left out are hollow.
    """
    from ..finished.average_jobs import GREEDY, UNIFORM

    metric = "test_accuracy" if "test_accuracy" in table else "test_loss"
    x, y = table[f"source_{metric}"].to_numpy(float), table[metric].to_numpy(float)
    best = int(table["chosen"].to_numpy().argmax())
    where = f" (alpha {table['alpha'].to_numpy()[best]:g})" if "alpha" in table else ""
    with picture(path, f"Test rows of both tasks. Ring: the lowest validation loss{where}.", height=4.8) as (ax,):
        if where:
            ax.plot(x, y, "o-", color=COLOURS[0], label="interpolated")
            start = "pre-trained" + (" below a fine-tuned head" if new_head else "")
            ax.plot(x[0], y[0], "s", ms=9, color=COLOURS[1], label=start)
            ax.plot(x[-1], y[-1], "D", ms=9, color=COLOURS[2], label="fine-tuned")
        else:
            weights, member = table["weights"].to_numpy(), table["member"].to_numpy()
            job = ~np.isin(weights, (UNIFORM, GREEDY))
            for label, rows, marker, look in (
                ("job in the soup", job & member, "o", {"color": COLOURS[0]}),
                ("job left out", job & ~member, "o", {"color": COLOURS[0], "mfc": "white"}),
                (UNIFORM, weights == UNIFORM, "^", {"color": COLOURS[2], "ms": 9}),
                (GREEDY, weights == GREEDY, "D", {"color": COLOURS[1], "ms": 9}),
            ):
                if rows.any():
                    ax.plot(x[rows], y[rows], marker, label=label, linestyle="none", **look)
        ax.plot(x[best], y[best], "o", ms=17, mfc="none", mec=COLOURS[-1], mew=1.8)
        ax.margins(0.15)
        better = "higher" if metric == "test_accuracy" else "lower"
        ax.set_xlabel(f"source task: {in_words(metric)} ({better} is better)")
        ax.set_ylabel(f"target task: {in_words(metric)}\n({better} is better)")

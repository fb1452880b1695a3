"""``report=stability``: does pre-training work? The monitored values of every run, and the warnings about them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ...errors import UserError, listed
from ...metrics.stability import SPIKE
from ...tracking.record_reader import Job
from ..comparison import config_columns
from ..export import load_sweep, varies
from ..factors import SEED
from ..formatting import Columns, count_of, in_words, markdown_table, show, show_mean
from ..plots import BAND, GREY, draw_band, picture, style_of
from ..reports import Report

PICTURE = "stability.png"
# Settings of fine-tuning: jobs that differ in nothing else share a pre-training.
LATER = ("lr_fine", "finetune_steps", "strategy", "optimizer", "schedule", "trainer", "retention")
LATER_DATA = ("data.train_rows", "data.val_fraction", "data.test_fraction")
MONITORED = ("temperature", "spread", "knn", "rankme")  # columns that only monitored pre-training logs
FLOORS = {"random": "of an untrained network", "pixels": "of pixels"}
MARKED = 25  # lines with at most so many points get markers
PANEL_COLUMNS = 3
KIND = 12  # leading characters that identify a kind of warning
EXPLAINED = (
    "Means over seeds, ± their 95 % Student-t interval: values of the last row, the largest gradient norm of the first "
    "epoch, and the accuracy on the source's test rows of nearest neighbours and of a linear probe, beside those of an "
    "untrained network and of pixels."
)
NOT_EVALUATED = (
    "Only the values of batches were logged during pre-training: set pretrain.eval_every to evaluate the features too."
)


@dataclass(frozen=True)
class MonitoredRun:
    """One pre-training: its condition, its seed, a job that used it, and its logged rows."""

    label: str
    seed: Any
    job: Job
    rows: pd.DataFrame

    @property
    def name(self) -> str:
        """The condition and the seed."""
        return f"{self.label}, seed {show(self.seed)}"

    @property
    def warnings(self) -> list[str]:
        """The warnings about the run, one sentence each, including a divergence."""
        ended = self.job.status == "diverged" and not any(row.get("stage") == "finetune" for row in self.job.rows())
        lost = [f"The loss stopped being finite after update {self.job.last_finite_step:,}."] if ended else []
        return [*lost, *self.job.warnings]

    def logged(self, column: str) -> list[float]:
        """Return the logged values of a column."""
        return list(self.rows[column].dropna().astype(float)) if column in self.rows else []

    def first(self, column: str) -> float | None:
        """Return the first logged value of a column, or None."""
        return next(iter(self.logged(column)), None)

    def last(self, column: str) -> float:
        """Return the last logged value of a column, or NaN."""
        return [math.nan, *self.logged(column)][-1]

    def metric(self, name: str) -> float:
        """Return a metric on the source's test rows, or else its last logged value, or NaN."""
        return self.job.metrics.get(f"source_test_{name}", self.last(name))


class CurvePanel(NamedTuple):
    """A panel of the picture: the first of its columns that was logged, with dashed and dotted reference lines."""

    columns: tuple[str, ...]
    title: str
    dashed: tuple[str, Callable[[MonitoredRun], float | None]] | None = None
    dotted: tuple[str, Callable[[MonitoredRun], float | None]] | None = None


def accuracy_panel(column: str, title: str) -> CurvePanel:
    """Return the panel of an accuracy, with those of pixels and of the untrained network as references."""
    pixels = ("pixels", lambda run: run.first(f"{column}_pixels"))
    untrained = ("untrained", lambda run: run.first(column) if run.first(f"{column}_pixels") else None)
    return CurvePanel((column,), title, pixels, untrained)


PANELS = (
    CurvePanel(("loss",), "loss", ("equal embeddings", lambda run: run.job.stability.get("equal_loss"))),
    CurvePanel(("grad_norm_max", "grad_norm"), "gradient norm", (f"{SPIKE:g}, a spike", lambda _: SPIKE)),
    CurvePanel(("temperature",), "temperature"),
    CurvePanel(("pos_similarity",), "similarity of two views"),
    CurvePanel(("neg_similarity",), "similarity of two images"),
    CurvePanel(("spread",), "spread", ("even spread", lambda run: run.job.stability.get("even_spread"))),
    CurvePanel(("rankme",), "effective rank (RankMe)"),
    accuracy_panel("knn", "accuracy of nearest neighbours"),
    accuracy_panel("probe", "accuracy of a linear probe"),
)
DASHES = {"dashed": (0, (6, 3)), "dotted": (0, (1.5, 2))}


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Collect the pre-trainings, draw their curves, and report which of them have warnings."""
    conditions = collect_runs(table, history, folder)
    runs = [run for own in conditions.values() for run in own]
    draw(conditions, folder / PICTURE)
    warned = "\n".join(f"- **{run.name}**: {' '.join(run.warnings)}" for run in runs if run.warnings)
    evaluated = any(run.logged("knn") for run in runs)
    return Report(
        title="Does pre-training work?",
        conclusion=conclude(conditions),
        body=[markdown_table(columns(), list(conditions.values())), EXPLAINED, warned or "No run has a warning."],
        pictures={PICTURE: "The course of pre-training"},
        notes=[] if evaluated else [NOT_EVALUATED],
    )


def collect_runs(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> dict[str, list[MonitoredRun]]:
    """Return by condition each monitored pre-training once, however many fine-tunings share it."""
    rows = pd.DataFrame() if history is None else history[history["stage"] == "pretrain"]
    there = [name for name in MONITORED if name in rows]
    known = rows[rows[there].notna().any(axis=1)]["job"].unique() if there else []
    if not len(known):
        raise UserError(
            "report=stability needs rows of a monitored pre-training, such as pretrain=simclr or pretrain=moco; "
            "this sweep has none"
        )
    table = table.loc[table["job"].isin(known)]
    config = [name for name in config_columns(table) if varies(table[name])]
    settings = [name for name in config if name.split(".")[0] not in LATER and name not in (*LATER_DATA, SEED)]
    jobs = {job.name: job for job in load_sweep(folder)}
    keys = [*settings, *([SEED] if SEED in table else [])]
    kept = table.sort_values(keys).drop_duplicates(keys) if keys else table[:1]
    runs: dict[str, list[MonitoredRun]] = {}
    for _, row in kept.iterrows():
        swept = {in_words(name.removeprefix("pretrain.")): row[name] for name in settings if not pd.isna(row[name])}
        label = ", ".join(f"{name} {show(value)}" for name, value in swept.items()) or str(row.get("pretrain"))
        own = rows[rows["job"] == row["job"]]
        runs.setdefault(label, []).append(MonitoredRun(label, row.get(SEED, "-"), jobs[row["job"]], own))
    return runs


def columns() -> Columns[list[MonitoredRun]]:
    """Return the columns of the table, which has a row for the runs of each condition."""

    def mean(of: Callable[[MonitoredRun], float]) -> Callable[[list[MonitoredRun]], str]:
        def cell(runs: list[MonitoredRun]) -> str:
            known = [value for value in map(of, runs) if math.isfinite(value)]
            return show_mean(known[:1] if len(set(known)) == 1 else known)  # the floors of pixels are equal

        return cell

    found = {
        "condition": lambda runs: runs[0].label,
        "runs": lambda runs: str(len(runs)),
        "with warnings": lambda runs: str(sum(bool(run.warnings) for run in runs)),
        "loss": mean(lambda run: run.last("loss")),
        "of equal embeddings": mean(lambda run: run.job.stability.get("equal_loss", math.nan)),
        "largest gradient": mean(lambda run: run.job.stability.get("first_epoch_grad_norm", math.nan)),
        "spread": mean(lambda run: run.last("spread")),
        "rankme": mean(lambda run: run.metric("rankme")),
        "lidar": mean(lambda run: run.metric("lidar")),
    }
    for name, words in (("knn", "neighbours"), ("probe", "probe")):
        floors = [mean(lambda run, key=f"{name}_{floor}": run.metric(key)) for floor in FLOORS]
        found[words] = mean(lambda run, key=name: run.job.metrics.get(f"source_test_{key}", math.nan))
        found[f"{words}: untrained, pixels"] = lambda runs, own=floors: ", ".join(floor(runs) for floor in own)
    return found


def conclude(conditions: Mapping[str, Sequence[MonitoredRun]]) -> str:
    """Return in one sentence how many runs have warnings, which, and how often features beat their floors."""
    runs = [run for own in conditions.values() for run in own]
    warned = sum(bool(run.warnings) for run in runs)
    if not warned:
        text = f"None of {len(runs)} runs has a warning" if len(runs) > 1 else "The run has no warning"
    else:
        why = [text for label, own in conditions.items() if (text := reasons(label, own))]
        text = f"{warned} of {count_of(len(runs), 'run')} {'has' if warned == 1 else 'have'} warnings: {listed(why, 3)}"
    name = "source_test_knn"
    known = [run.job.metrics for run in runs if math.isfinite(run.job.metrics.get(name, math.nan))]
    if not known:
        return f"{text}."
    counts = " and ".join(
        f"{words} in {sum(own[name] > own.get(f'{name}_{floor}', math.inf) for own in known)}"
        for floor, words in FLOORS.items()
    )
    return f"{text}; of {count_of(len(known), 'run')}, nearest neighbours by the features beat those {counts}."


def reasons(label: str, runs: Sequence[MonitoredRun]) -> str:
    """Return the number of seeds with warnings and the first warning of each kind, up to a colon; "" without any."""
    warned = [run for run in runs if run.warnings]
    kinds = {sentence[:KIND]: sentence for run in reversed(warned) for sentence in reversed(run.warnings)}
    why = "; ".join(sentence.split(":")[0].rstrip(".") for sentence in reversed(kinds.values()))
    where = runs[0].name if len(runs) == 1 else f"{label} at {len(warned)} of {len(runs)} seeds"
    return f"{where} ({why})" if warned else ""


def draw(conditions: Mapping[str, Sequence[MonitoredRun]], path: Path) -> None:
    """Draw the panels whose columns were logged."""
    runs = [run for own in conditions.values() for run in own]
    logged = [(panel, next((c for c in panel.columns if any(run.logged(c) for run in runs)), None)) for panel in PANELS]
    panels = [(panel, column) for panel, column in logged if column]
    height = -(-len(panels) // PANEL_COLUMNS)
    caption = BAND if len(runs) > len(conditions) else "Lines: single runs."
    with picture(path, caption, 1.0 + 2.35 * height + 0.22 * len(conditions), PANEL_COLUMNS, height) as axes:
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        for place, (ax, (panel, column)) in enumerate(zip(axes, panels, strict=False)):
            for number, own in enumerate(conditions.values()):
                draw_condition(ax, own, column, style_of(number))
            ax.set_title(f"{panel.title}\n{draw_references(ax, panel, runs)}", fontsize=9.5, color="#333333")
            if column.startswith("grad_norm"):
                ax.set_yscale("log")
            if place >= len(panels) - PANEL_COLUMNS:
                ax.set_xlabel("updates")
            ax.locator_params(axis="x", nbins=4)
            ax.tick_params(labelsize=8.5)


def draw_condition(ax: Axes, runs: Sequence[MonitoredRun], column: str, style: Mapping[str, Any]) -> None:
    """Draw the mean of a condition over its runs, and a band from the smallest to the largest."""
    rows = pd.concat([run.rows for run in runs])
    curve = rows[["step", column]].replace([np.inf, -np.inf], np.nan).dropna().groupby("step")[column]
    found = curve.agg(["mean", "min", "max"])
    if len(runs) > 1:
        draw_band(ax, found.index, found["min"], found["max"], style["color"])
    marked = {"marker": style["marker"] if len(found) <= MARKED else None, "markersize": 4, "label": runs[0].label}
    ax.plot(found.index, found["mean"], **{**style, **marked})


def draw_references(ax: Axes, panel: CurvePanel, runs: Sequence[MonitoredRun]) -> str:
    """Draw the reference lines of a panel, one for each mean over a condition; return the words for its title."""
    words = []
    for name, dashes in DASHES.items():
        text, value = getattr(panel, name) or ("", lambda _: None)
        found = pd.Series([value(run) for run in runs], [run.label for run in runs], dtype=float).dropna()
        levels = set(found.groupby(level=0).mean().round(6))
        for level in levels:
            ax.axhline(level, color=GREY, linestyle=dashes, linewidth=1.2, zorder=1)
        words += [f"{name}: {text}"] if levels else []
    return ", ".join(words)

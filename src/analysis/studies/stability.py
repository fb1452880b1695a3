"""``report=stability``: is pre-training working? What every run's monitor saw, and what it warns of."""

# pandas' own annotations give indexing a union of everything it might return, which no caller can narrow.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false
# pyright: reportGeneralTypeIssues=false, reportReturnType=false

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from ...errors import UserError, listed
from ...metrics.stability import SPIKE
from ...tracking.records import Job
from ..analysis import count_of, show
from ..export import load_sweep, varies
from ..plots import BAND, draw_band, in_words, legend_below, look_of, picture
from ..report import markdown_table, show_interval
from ..statistics import mean_interval
from ..study import Report

PICTURE = "stability.png"
SEED = "seed"
# Settings that only fine-tuning reads: jobs that differ in nothing else share a pre-training.
LATER = ("lr_fine", "finetune_steps", "strategy", "optimizer", "schedule", "trainer", "retention")
LATER_DATA = ("data.train_rows", "data.val_fraction", "data.test_fraction")
MONITORED = ("temperature", "spread", "knn", "rankme")  # one of these tells that rows are of a monitor
FEW = 25  # points of a line up to which each is marked


class Reference(NamedTuple):
    """What a panel's curve is compared with."""

    words: str
    value: Callable[[Run], float | None]


class Panel(NamedTuple):
    """One of the small multiples: the first of its columns that the rows have is drawn."""

    columns: tuple[str, ...]
    title: str
    references: tuple[Reference, ...] = ()
    log: bool = False


@dataclass(frozen=True)
class Run:
    """One pre-training, with a job that went through it."""

    label: str  # of its condition
    seed: Any
    job: Job
    rows: pd.DataFrame  # logged, of pre-training

    @property
    def name(self) -> str:
        """What to call it."""
        return f"{self.label}, seed {show(self.seed)}"

    @property
    def warnings(self) -> list[str]:
        """What is wrong with it, a sentence each; a divergence is."""
        ended = self.job.status == "diverged" and not any(row.get("stage") == "finetune" for row in self.job.rows())
        lost = [f"The loss stopped being finite after update {self.job.last_finite_step:,}."] if ended else []
        return [*lost, *self.job.warnings]

    def at_first(self, column: str) -> float | None:
        """Return a column's first value, if it has any."""
        values = self.rows[column].dropna() if column in self.rows else []
        return float(values.iloc[0]) if len(values) else None

    def last(self, *columns: str) -> float:
        """Return the last value of the first column that there is; NaN if there is none."""
        for column in columns:
            values = self.rows[column].dropna() if column in self.rows else []
            if len(values):
                return float(values.iloc[-1])
        return math.nan


def untrained(name: str) -> Reference:
    """Return the floor of a network before its first update."""
    return Reference("dotted: untrained", lambda run: run.at_first(name) if run.at_first(f"{name}_pixels") else None)


def of_pixels(name: str) -> Reference:
    """Return the floor of pixels."""
    return Reference("dashed: pixels", lambda run: run.at_first(f"{name}_pixels"))


PANELS = (
    Panel(("loss",), "loss", (Reference("dashed: equal embeddings", lambda run: run.job.stability.get("equal_loss")),)),
    Panel(
        ("grad_norm_max", "grad_norm"),
        "gradient norm",
        (Reference(f"dashed: {SPIKE:g}, a spike", lambda _: SPIKE),),
        log=True,
    ),
    Panel(("temperature",), "temperature"),
    Panel(("pos_similarity",), "similarity of two views"),
    Panel(("neg_similarity",), "similarity of two images"),
    Panel(
        ("spread",), "spread", (Reference("dashed: spread evenly", lambda run: run.job.stability.get("even_spread")),)
    ),
    Panel(("rankme",), "effective rank (RankMe)"),
    Panel(("knn",), "accuracy of nearest neighbours", (of_pixels("knn"), untrained("knn"))),
    Panel(("probe",), "accuracy of a linear probe", (of_pixels("probe"), untrained("probe"))),
)
DASHES = ((0, (6, 3)), (0, (1.5, 2)))  # of references, the first and the second
COLUMNS = 3


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Gather the runs, draw their course, and say which of them look healthy.

    Raises:
        UserError: no job has rows of a monitored pre-training.
    """
    runs = runs_of(table, history, folder)
    conditions = list(dict.fromkeys(run.label for run in runs))
    draw(runs, conditions, folder / PICTURE)
    ill = [run for run in runs if run.warnings]
    said = "\n".join(f"- **{run.name}**: {' '.join(run.warnings)}" for run in ill) or "No run warns of anything."
    return Report(
        title="Is pre-training working?",
        conclusion=conclude(runs),
        body="\n\n".join([markdown_table(columns(runs), conditions), EXPLAINED, said]),
        pictures={PICTURE: "The course of pre-training"},
        notes=[] if any("knn" in run.rows and run.rows["knn"].notna().any() for run in runs) else [NOT_ON_THE_WAY],
    )


EXPLAINED = (
    "Means over seeds, ± their 95 % Student-t interval: of the last row, of the largest gradient norm of the first "
    "epoch, and of the accuracy on the source's test rows by nearest neighbours and by a linear probe, with the floors "
    "of an untrained network and of pixels."
)
NOT_ON_THE_WAY = (
    "On the way only the batches' own numbers were logged: pretrain.eval_every sets how often the features' worth is."
)


def runs_of(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> list[Run]:
    """Return each pre-training once, whatever number of fine-tunings shared it."""
    there = [] if history is None else [name for name in MONITORED if name in history]
    rows = pd.DataFrame() if history is None else history[history["stage"] == "pretrain"]
    known = rows[rows[there].notna().any(axis=1)]["job"].unique() if there else []
    if not len(known):
        raise UserError(
            "report=stability needs rows of a monitored pre-training, such as pretrain=simclr or pretrain=moco; "
            "this sweep has none"
        )
    table = table.loc[table["job"].isin(known)]
    told = settings_of(table)
    jobs = {job.name: job for job in load_sweep(folder)}
    apart = [*told, *([SEED] if SEED in table else [])]
    # Conditions in the order of their values; a single job has nothing that it could be told apart by.
    kept = table.sort_values(apart).drop_duplicates(apart) if apart else table[:1]
    return [
        Run(label_of(row, told), row.get(SEED, "-"), jobs[row["job"]], rows[rows["job"] == row["job"]])
        for _, row in kept.iterrows()
    ]


def settings_of(table: pd.DataFrame) -> list[str]:
    """Return the settings of pre-training in which jobs differ, apart from the seed."""
    names = list(table)
    config = names[names.index("status") + 1 : names.index("objective")]
    later = [name for name in config if name.split(".")[0] in LATER or name in LATER_DATA]
    return [name for name in config if name not in (*later, SEED) and varies(table[name])]


def label_of(row: pd.Series, told: Sequence[str]) -> str:
    """Name a condition by what it differs in."""
    known = {name.removeprefix("pretrain."): row[name] for name in told if not pd.isna(row[name])}
    return ", ".join(f"{in_words(name)} {show(value)}" for name, value in known.items()) or str(row.get("pretrain"))


def columns(runs: Sequence[Run]) -> dict[str, Callable[[str], str]]:
    """Return the columns of the table: name, and what a condition's cell says."""

    def mean(of: Callable[[Run], float]) -> Callable[[str], str]:
        return lambda label: show_mean(of(run) for run in runs if run.label == label)

    def metric(name: str) -> Callable[[Run], float]:
        return lambda run: run.job.metrics.get(f"source_test_{name}", math.nan)

    worth: dict[str, Callable[[str], str]] = {}
    for name, words in (("knn", "neighbours"), ("probe", "probe")):
        floors = [mean(metric(f"{name}_{floor}")) for floor in FLOORS]
        worth[words] = mean(metric(name))
        worth[f"{words}: untrained, pixels"] = lambda label, own=floors: ", ".join(floor(label) for floor in own)
    return {
        "condition": str,
        "runs": lambda label: str(sum(run.label == label for run in runs)),
        "with warnings": lambda label: str(sum(run.label == label and bool(run.warnings) for run in runs)),
        "loss": mean(lambda run: run.last("loss")),
        "of equal embeddings": mean(lambda run: run.job.stability.get("equal_loss", math.nan)),
        "largest gradient": mean(lambda run: run.job.stability.get("first_epoch_grad_norm", math.nan)),
        "spread": mean(lambda run: run.last("spread")),
        "rankme": mean(lambda run: run.job.metrics.get("source_test_rankme", run.last("rankme"))),
        "lidar": mean(lambda run: run.job.metrics.get("source_test_lidar", run.last("lidar"))),
        **worth,
    }


def conclude(runs: Sequence[Run]) -> str:
    """Say in one sentence which runs look healthy, what is wrong with the others, and what features are worth."""
    ill = [run for run in runs if run.warnings]
    if not ill:
        said = f"All {len(runs)} runs look healthy" if len(runs) > 1 else "The run looks healthy"
    else:
        verb = "does" if len(ill) == 1 else "do"
        said = f"{len(ill)} of {count_of(len(runs), 'run')} {verb} not look healthy: {listed(reasons(runs), 3)}"
    return f"{said}{worth_of(runs)}."


def reasons(runs: Sequence[Run]) -> list[str]:
    """Say of each condition with ill runs how many they are and why: one sentence of each kind, up to its colon."""
    found = []
    for label in dict.fromkeys(run.label for run in runs):
        own = [run for run in runs if run.label == label]
        ill = [run for run in own if run.warnings]
        kinds = {sentence[:KIND]: sentence for run in reversed(ill) for sentence in reversed(run.warnings)}
        why = "; ".join(sentence.split(":")[0].rstrip(".") for sentence in reversed(kinds.values()))
        if ill:
            where = ill[0].name if len(own) == 1 else f"{label} at {len(ill)} of {len(own)} seeds"
            found.append(f"{where} ({why})")
    return found


KIND = 12  # letters that tell a kind of warning from another


def show_mean(values: Iterable[float]) -> str:
    """Write the mean of the finite ones of some values with its interval, where they differ."""
    known = [value for value in values if math.isfinite(value)]
    alike = len(set(known)) == 1  # as a floor of pixels is in all runs
    return show_interval(mean_interval(known[:1] if alike else known))


def worth_of(runs: Sequence[Run]) -> str:
    """Say in how many runs the features beat their floors, by nearest neighbours; nothing where it is not known."""
    name = "source_test_knn"
    known = [run.job.metrics for run in runs if math.isfinite(run.job.metrics.get(name, math.nan))]
    if not known:
        return ""
    above = {floor: sum(own[name] > own.get(f"{name}_{floor}", math.inf) for own in known) for floor in FLOORS}
    counts = " and ".join(f"{FLOORS[floor]} in {count}" for floor, count in above.items())
    return f"; of {count_of(len(known), 'run')}, nearest neighbours by the features beat those {counts}"


FLOORS = {"random": "of an untrained network", "pixels": "of pixels"}


def draw(runs: Sequence[Run], conditions: Sequence[str], path: Path) -> None:
    """Draw the panels that there are numbers for."""
    panels = [(panel, name) for panel in PANELS if (name := column_of(panel, runs)) is not None]
    height = -(-len(panels) // COLUMNS)
    shown = BAND if len(runs) > len(conditions) else "Lines: single runs."
    with picture(path, shown, 1.0 + 2.35 * height + 0.22 * len(conditions), COLUMNS, height) as axes:
        for ax in axes[len(panels) :]:
            ax.set_visible(False)
        for place, (ax, (panel, name)) in enumerate(zip(axes, panels, strict=False)):
            for number, label in enumerate(conditions):
                draw_condition(ax, [run for run in runs if run.label == label], name, look_of(number), label)
            words = draw_references(ax, panel, runs)
            ax.set_title("\n".join([panel.title, words]), fontsize=9.5, color="#333333")
            if panel.log:
                ax.set_yscale("log")
            if place >= len(panels) - COLUMNS:
                ax.set_xlabel("updates")
            ax.locator_params(axis="x", nbins=4)
            ax.tick_params(labelsize=8.5)
        legend_below(axes[: len(panels)])


def column_of(panel: Panel, runs: Sequence[Run]) -> str | None:
    """Return the first of a panel's columns that some run has."""
    return next((name for name in panel.columns if any(run.at_first(name) is not None for run in runs)), None)


def draw_condition(ax: Axes, runs: Sequence[Run], name: str, look: Mapping[str, Any], label: str) -> None:
    """Draw a condition's mean over its runs, and a band from the smallest to the largest."""
    rows = pd.concat([run.rows for run in runs])
    if name not in rows:
        return
    curve = rows[["step", name]].replace([np.inf, -np.inf], np.nan).dropna().groupby("step")[name]
    found = curve.agg(["mean", "min", "max"])
    if len(runs) > 1:
        draw_band(ax, found.index, found["min"], found["max"], look["color"])
    marked = {"marker": look["marker"] if len(found) <= FEW else None, "markersize": 4}
    ax.plot(found.index, found["mean"], label=label, **{**look, **marked})


def draw_references(ax: Axes, panel: Panel, runs: Sequence[Run]) -> str:
    """Draw what the curves are compared with, a line for each value; return the words for the panel's title."""
    words = []
    for reference, dashes in zip(panel.references, DASHES, strict=False):
        by_condition: dict[str, list[float]] = {}
        for run in runs:
            if (value := reference.value(run)) is not None:
                by_condition.setdefault(run.label, []).append(value)
        levels = {round(float(np.mean(values)), 6) for values in by_condition.values()}
        for level in levels:
            ax.axhline(level, color="#555555", linestyle=dashes, linewidth=1.2, zorder=1)
        if levels:
            words.append(reference.words)
    return ", ".join(words)

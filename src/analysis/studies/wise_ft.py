"""``report=wise_ft``: what can be had of a sweep's own weights without training any more.

Points between pre-trained and fine-tuned weights (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903) and means of a
seed's fine-tunings (model soups, arXiv 2203.05482), each measured on the target and on the source task.
"""

# pandas' own annotations give indexing a union of everything it might return, which no caller can narrow.
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportGeneralTypeIssues=false

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import UserError
from ..conditions import choose, notes_of, results, tuning
from ..plots import look_of, picture
from ..report import markdown_table, show_interval
from ..statistics import Interval, mean_interval, paired_difference
from ..study import Report

PICTURE = "wise_ft.png"
ALPHAS = np.linspace(0.0, 1.0, 21)
START, END = "pre-trained", "fine-tuned, the chosen rate"
HALF, BY_VALIDATION = "WiSE-FT, alpha 0.5", "WiSE-FT, alpha by validation"
UNIFORM, GREEDY = "uniform soup of all rates", "greedy soup of all rates"
TARGET, SOURCE = "test_accuracy", "source_test_accuracy"

Point = dict[str, float]  # of the columns TARGET and SOURCE


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Measure each seed's path and soups, and compare them with the chosen fine-tuning.

    Raises:
        UserError: the jobs are no classification by one strategy, or their source task has no rows to choose by.
    """
    if "source_val_accuracy" not in table or table["source_val_accuracy"].isna().any():
        raise UserError(
            "report=wise_ft needs a classification whose source task has rows to choose by; "
            "allowed: data.source_val_fraction above 0"
        )
    if table["strategy"].nunique() > 1:
        raise UserError("report=wise_ft compares what is made of one strategy's jobs; this sweep has several")
    analysis = choose(table, "strategy")
    ((_, arm),) = results(analysis).items()
    best = dict(zip(arm.jobs["seed"], arm.jobs["job"], strict=True))
    found, paths, alphas = {}, {}, {}
    for seed, jobs in table.groupby("seed"):
        if seed in best:
            members = [folder / str(name) for name in jobs["job"]]
            found[seed], paths[seed], alphas[seed] = made_of(folder / str(best[seed]), members)
    rows = {name: {seed: own[name] for seed, own in found.items()} for name in (START, END, *MADE)}
    draw(rows, list(paths.values()), folder / PICTURE)
    columns = {
        "weights": str,
        "target test accuracy": lambda name: show_interval(interval(rows[name], TARGET)),
        "minus fine-tuned": lambda name: against(rows, name, TARGET),
        "source test accuracy": lambda name: show_interval(interval(rows[name], SOURCE)),
        "source minus fine-tuned": lambda name: against(rows, name, SOURCE),
    }
    taken = ", ".join(f"{alpha:g}" for alpha in alphas.values())
    how = (
        f"Alpha by validation: the best mean validation accuracy of both tasks; seed by seed {taken}. The greedy soup "
        "adds the next best rate while the target's validation loss gets no worse."
    )
    return Report(
        title="What can be had of finished weights without training any more?",
        conclusion=conclude(rows),
        body="\n\n".join([markdown_table(columns, list(rows)), how, tuning(analysis)]),
        pictures={PICTURE: "From pre-trained to fine-tuned, and soups"},
        notes=notes_of(analysis, table),
    )


MADE = (HALF, BY_VALIDATION, UNIFORM, GREEDY)


def made_of(best: Path, members: Sequence[Path]) -> tuple[dict[str, Point], pd.DataFrame, float]:
    """Return what can be made of one seed's jobs: accuracies by name, the path, and the alpha that validation chose."""
    from ...finished.averaging import greedy_soup, stack, uniform_soup
    from ...finished.evaluation import evaluate_weights, validation_loss
    from ...finished.finetuned import read_finetuned, read_finetuned_job

    finetuned = read_finetuned([read_finetuned_job(folder) for folder in members])
    chosen = finetuned[list(members).index(best)]
    target, source = chosen.tasks()
    rows = {"source_val": chosen.job.data.source["val"], **source.splits}
    tasks = [target, source._replace(splits=rows)]
    path = evaluate_weights(chosen.interpolation(ALPHAS), tasks)
    both = (path["val_accuracy"] + path["source_val_accuracy"]).to_numpy()
    place = int(np.flatnonzero(both == both.max())[-1])  # of equal ones the closest to fine-tuned
    weights = [one.params for one in finetuned]
    greedy = greedy_soup(weights, validation_loss(target)).params
    soups = evaluate_weights(stack([uniform_soup(weights), greedy]), tasks)
    last = len(path) - 1
    points = {START: path.iloc[0], END: path.iloc[last], HALF: path.iloc[last // 2], BY_VALIDATION: path.iloc[place]}
    points |= {UNIFORM: soups.iloc[0], GREEDY: soups.iloc[1]}
    found = {name: {column: float(row[column]) for column in (TARGET, SOURCE)} for name, row in points.items()}
    return found, path, float(ALPHAS[place])


def interval(points: Mapping[Any, Point], column: str) -> Interval:
    """Return the mean over seeds."""
    return mean_interval([point[column] for point in points.values()])


def difference(rows: Mapping[str, Mapping[Any, Point]], name: str, column: str) -> Interval:
    """Return what is gained over the chosen fine-tuning, paired by seed."""
    own, end = ({seed: point[column] for seed, point in rows[one].items()} for one in (name, END))
    return paired_difference(own, end)


def against(rows: Mapping[str, Mapping[Any, Point]], name: str, column: str) -> str:
    """Write that difference for a cell of a table."""
    if name == END:
        return "reference"
    gain = difference(rows, name, column)
    return show_interval(gain, sign=True) + " *" * gain.excludes_zero


def draw(rows: Mapping[str, Mapping[Any, Point]], paths: Sequence[pd.DataFrame], path: Path) -> None:
    """Draw each seed's path in grey, the mean path above it, and a marker for the mean of all else."""
    with picture(
        path, "Grey: single seeds. Line: the mean path, alpha from 0 to 1. Markers: means over seeds.", 4.6
    ) as (ax,):
        for one in paths:
            ax.plot(one[TARGET], one[SOURCE], color="#cccccc", linewidth=0.8, zorder=0)
        mean = [np.mean([one[column].to_numpy() for one in paths], axis=0) for column in (TARGET, SOURCE)]
        ax.plot(*mean, color="#555555", linewidth=1.6, label="mean path", zorder=1)
        for place, (name, points) in enumerate(rows.items()):
            look = look_of(place)
            x, y = interval(points, TARGET), interval(points, SOURCE)
            ax.plot(x.mean, y.mean, color=look["color"], marker=look["marker"], markersize=8, label=name, linestyle="")
        ax.set_xlabel("target test accuracy")
        ax.set_ylabel("source test accuracy")
        ax.legend(loc="center left", bbox_to_anchor=(1.02, 0.5))


def conclude(rows: Mapping[str, Mapping[Any, Point]]) -> str:
    """Say in one sentence what the numbers carry."""
    target, source = (difference(rows, BY_VALIDATION, column) for column in (TARGET, SOURCE))
    soup = difference(rows, GREEDY, TARGET)

    def said(gain: Interval) -> str:
        return show_interval(gain, sign=True) + ("" if gain.excludes_zero else " (undecided)")

    return (
        f"The point on the path that validation chose changes the chosen fine-tuning's target accuracy by "
        f"{said(target)} and the source's by {said(source)}; the greedy soup changes the target's by {said(soup)} "
        f"({len(rows[END])} seeds)."
    )

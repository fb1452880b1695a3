"""``report=wise_ft``: what can be gained from finished weights without further training?

Points between pre-trained and fine-tuned weights (WiSE-FT, Wortsman et al. 2022, arXiv 2109.01903) and means of the
fine-tunings of a seed (model soups, arXiv 2203.05482), each measured on the target and on the source task.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ...errors import UserError
from ..factors import STRATEGY, compare_factors
from ..formatting import count_of, markdown_table, show_difference, show_interval
from ..plots import draw_tradeoff, picture
from ..reports import Report
from ..statistics import ConfidenceInterval, mean_interval, paired_difference

PICTURE = "wise_ft.png"
ALPHAS = np.linspace(0.0, 1.0, 21)
START, END = "pre-trained", "fine-tuned, the chosen rate"
HALF, BY_VALIDATION = "WiSE-FT, alpha 0.5", "WiSE-FT, alpha by validation"
UNIFORM, GREEDY = "uniform soup of all rates", "greedy soup of all rates"
TARGET, SOURCE = "test_accuracy", "source_test_accuracy"

SeedPoints = Mapping[Any, Mapping[str, float]]  # by seed: the values of the columns TARGET and SOURCE


def study(table: pd.DataFrame, history: pd.DataFrame | None, folder: Path) -> Report:
    """Measure the path and the soups of each seed, and compare them with the chosen fine-tuning."""
    if "source_val_accuracy" not in table or table["source_val_accuracy"].isna().any():
        raise UserError(
            "report=wise_ft needs a classification whose source task has validation rows; "
            "allowed: data.source_val_fraction above 0"
        )
    if table[STRATEGY].nunique() > 1:
        raise UserError("report=wise_ft combines the weights of one strategy; this sweep has several")
    found = compare_factors(table, [STRATEGY])
    best = dict(zip(found.arms[0].jobs["seed"], found.arms[0].jobs["job"], strict=True))
    points, paths, alphas = {}, {}, {}
    for seed, jobs in table.groupby("seed"):
        if seed in best:
            members = [folder / str(name) for name in jobs["job"]]
            points[seed], paths[seed], alphas[seed] = measure_seed(folder / str(best[seed]), members)
    names = (START, END, HALF, BY_VALIDATION, UNIFORM, GREEDY)
    rows = {name: {seed: own[name] for seed, own in points.items()} for name in names}
    gains = {(name, column): gain_of(rows, name, column) for name in names for column in (TARGET, SOURCE)}
    draw(rows, list(paths.values()), folder / PICTURE)
    columns = {
        "weights": str,
        "target test accuracy": lambda name: show_interval(mean_of(rows[name], TARGET)),
        "minus fine-tuned": lambda name: show_difference(gains[name, TARGET], "reference"),
        "source test accuracy": lambda name: show_interval(mean_of(rows[name], SOURCE)),
        "source minus fine-tuned": lambda name: show_difference(gains[name, SOURCE], "reference"),
    }
    taken = ", ".join(f"{alpha:g}" for alpha in alphas.values())
    how = (
        f"Alpha by validation has the highest mean validation accuracy of both tasks; by seed: {taken}. The greedy "
        "soup adds the next best rate as long as the target's validation loss does not rise."
    )
    return Report(
        title="What can be gained from finished weights without further training?",
        conclusion=conclude(gains, len(points)),
        body=[markdown_table(columns, list(rows)), how, found.how],
        pictures={PICTURE: "From pre-trained to fine-tuned weights, and soups"},
        notes=found.notes,
    )


def measure_seed(best: Path, members: Sequence[Path]) -> tuple[dict[str, dict[str, float]], pd.DataFrame, float]:
    """Return the accuracies by name for the weights made from one seed's jobs, the path, and the chosen alpha."""
    from ...finished.average_jobs import read_finetuned, read_finetuned_job
    from ...finished.averaging import evaluate_weights, greedy_soup, stack, uniform_soup, validation_loss

    finetuned = read_finetuned([read_finetuned_job(folder) for folder in members])
    chosen = finetuned[list(members).index(best)]
    target, source = chosen.tasks()
    rows = {"source_val": chosen.job.data.source["val"], **source.splits}
    tasks = [target, source._replace(splits=rows)]
    path = evaluate_weights(chosen.interpolation(ALPHAS), tasks)
    both = (path["val_accuracy"] + path["source_val_accuracy"]).to_numpy()
    place = int(np.flatnonzero(both == both.max())[-1])  # a tie goes to the point closest to fine-tuned
    weights = [one.params for one in finetuned]
    greedy, _ = greedy_soup(weights, validation_loss(target))
    soups = evaluate_weights(stack([uniform_soup(weights), greedy]), tasks)
    last = len(path) - 1
    points = {START: path.iloc[0], END: path.iloc[last], HALF: path.iloc[last // 2], BY_VALIDATION: path.iloc[place]}
    points |= {UNIFORM: soups.iloc[0], GREEDY: soups.iloc[1]}
    found = {name: {column: float(row[column]) for column in (TARGET, SOURCE)} for name, row in points.items()}
    return found, path, float(ALPHAS[place])


def mean_of(points: SeedPoints, column: str) -> ConfidenceInterval:
    """Return the mean over seeds."""
    return mean_interval([point[column] for point in points.values()])


def gain_of(rows: Mapping[str, SeedPoints], name: str, column: str) -> ConfidenceInterval | None:
    """Return the difference from the chosen fine-tuning, paired by seed; None for that itself."""
    own, end = ({seed: point[column] for seed, point in rows[one].items()} for one in (name, END))
    return None if name == END else paired_difference(own, end)


def draw(rows: Mapping[str, SeedPoints], paths: Sequence[pd.DataFrame], path: Path) -> None:
    """Draw the path of each seed in grey, the mean path, and a marker for the mean of each kind of weights."""
    caption = "Grey: single seeds. Line: the mean path, alpha from 0 to 1. Markers: means with 95 % intervals."
    with picture(path, caption, 4.6) as (ax,):
        for one in paths:
            ax.plot(one[TARGET], one[SOURCE], color="#cccccc", linewidth=0.8, zorder=0)
        mean = [np.mean([one[column].to_numpy() for one in paths], axis=0) for column in (TARGET, SOURCE)]
        ax.plot(*mean, color="#555555", linewidth=1.6, label="mean path", zorder=1)
        points = {name: (mean_of(own, TARGET), mean_of(own, SOURCE)) for name, own in rows.items()}
        draw_tradeoff(ax, points, ("target test accuracy", "source test accuracy"))


def conclude(gains: Mapping[tuple[str, str], ConfidenceInterval | None], seeds: int) -> str:
    """Return the conclusion in one sentence."""
    target, source, soup = (
        show_interval(gain, sign=True) + ("" if gain.excludes_zero else " (undecided)")
        for key in ((BY_VALIDATION, TARGET), (BY_VALIDATION, SOURCE), (GREEDY, TARGET))
        if (gain := gains[key])
    )
    return (
        f"The point on the path that validation chose changes the accuracy of the chosen fine-tuning by {target} on "
        f"the target and by {source} on the source; the greedy soup changes it by {soup} on the target "
        f"({count_of(seeds, 'seed')})."
    )
